// The console: the session, the views, and the header.

import * as operator from "./operator.js";
import { $, hide, onSubmit, state, write } from "./dom.js";
import { isToken, Session } from "./session.js";
import { Cache } from "./views/cache.js";
import { Clients } from "./views/clients.js";
import { Overview } from "./views/overview.js";
import { Services } from "./views/services.js";
import { Topics } from "./views/topics.js";

const session = new Session();
const views = {
  overview: new Overview(session, operator),
  topics: new Topics(session, operator),
  clients: new Clients(session, operator),
  services: new Services(session, operator),
  cache: new Cache(session, operator),
};
let shown = null; // the view's name

// ---- the view: stored in the address, so that it can be bookmarked and sent

function navigate() {
  const [, name, rest] = /^#(\w*)[/?]?(.*)$/.exec(location.hash) ?? [];
  const wanted = name in views ? name : "overview";
  if (shown && shown !== wanted) views[shown].leave();
  for (const id of Object.keys(views)) hide($(id), id !== wanted);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${document.querySelector(`nav a[href="#${wanted}"]`).textContent} · Gateway console`;
  const again = shown === wanted && wanted === "overview";
  shown = wanted;
  if (!again) views[wanted].show(wanted === name ? rest : "");
}

addEventListener("hashchange", navigate);
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});

// ---- the connection

function showLink(detail) {
  const { gateway } = session;
  const words = {
    connecting: ["Connecting…", "warn"],
    connected: [`Live · ${gateway.node}`, "good"],
    authenticated: [`Live · ${gateway.node}`, "good"],
    waiting: ["Not connected", "bad"],
    closed: ["Disconnected", "bad"],
  }[gateway.state];
  state($("link"), ...(gateway.degraded ? [`Live · ${gateway.node}, without Redis`, "warn"] : words));
  let trouble = "";
  if (gateway.degraded) trouble = `Node ${gateway.node} has lost Redis: it reports no figures and publishes no messages until Redis is back.`;
  if (gateway.state === "waiting" && detail) {
    const wait = Math.round(detail.waitMs / 1000);
    trouble = `No connection to the cluster${detail.reason ? ` (${detail.reason})` : ""}. Next attempt ${wait < 1 ? "at once" : `in ${wait} s`}. The page shows old data.`;
  }
  if (gateway.state === "closed") trouble = `The gateway has closed this page's connection (${detail?.reason ?? ""}). Reload the page to reconnect.`;
  if (trouble || !["connecting", "waiting"].includes(gateway.state)) {
    write($("trouble"), trouble);
    hide($("trouble"), !trouble);
  }
}

session.addEventListener("state", ({ detail }) => showLink(detail));

// ---- sign-in

function showWho(why) {
  write($("who"), { token: "Admin token · Sign out", key: "API key · Sign out" }[session.kind] ?? "Sign in");
  hide($("public"), session.signedIn);
  showMay();
  if (why) operator.notify(why, "bad");
  showLink(null);
}

/** Disable the actions that the credential does not permit; the title of a disabled button states the reason. */
function showMay() {
  for (const button of document.querySelectorAll("[data-scope]")) {
    button.title = session.forbids(button.dataset.scope);
    button.disabled = Boolean(button.title);
  }
  write($("limits"), session.limits);
  hide($("limits"), !session.limits);
}

function askWho() {
  $("sign-in-state").textContent = "";
  $("credential").value = "";
  $("sign-in").showModal();
}

session.addEventListener("who", ({ detail }) => showWho(detail));
session.addEventListener("may", showMay);
$("who").addEventListener("click", () => (session.signedIn ? session.signOut() : askWho()));
$("public-sign-in").addEventListener("click", askWho);
onSubmit($("sign-in").querySelector("form"), async ({ submitter }) => {
  if (submitter) submitter.disabled = true;
  const credential = $("credential").value.trim();
  try {
    await session.signIn(credential);
    $("sign-in").close();
  } catch (error) {
    const because = error.status === 401 && !isToken(credential) ? "The gateway does not know this key." : error.message;
    write($("sign-in-state"), because);
    $("credential").select();
  } finally {
    if (submitter) submitter.disabled = false;
  }
});

session.start();
navigate();
