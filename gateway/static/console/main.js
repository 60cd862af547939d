// The console put together: the session, the views, and what stands above them all.

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

// ---- which view: the address says it, so that it can be kept and sent

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
  const said = {
    connecting: ["Connecting…", "warn"],
    connected: [`Live · ${gateway.node}`, "good"],
    authenticated: [`Live · ${gateway.node}`, "good"],
    waiting: ["Not connected", "bad"],
    closed: ["Disconnected", "bad"],
  }[gateway.state];
  state($("link"), ...(gateway.degraded ? [`Live · ${gateway.node}, without Redis`, "warn"] : said));
  let trouble = "";
  if (gateway.degraded) trouble = `Node ${gateway.node} has lost Redis: it tells no figures, and nothing is published, until it is back.`;
  if (gateway.state === "waiting" && detail) {
    const wait = Math.round(detail.waitMs / 1000);
    trouble = `No connection to the cluster${detail.reason ? ` (${detail.reason})` : ""}. Trying again ${wait < 1 ? "at once" : `in ${wait} s`}. What stands here is from before.`;
  }
  if (gateway.state === "closed") trouble = `The gateway has closed this page's connection (${detail?.reason ?? ""}). Load the page again to come back.`;
  if (trouble || !["connecting", "waiting"].includes(gateway.state)) {
    write($("trouble"), trouble);
    hide($("trouble"), !trouble);
  }
}

session.addEventListener("state", ({ detail }) => showLink(detail));

// ---- who

function showWho(why) {
  write($("who"), { token: "Admin token · Sign out", key: "API key · Sign out" }[session.kind] ?? "Sign in");
  hide($("public"), session.signedIn);
  showMay();
  if (why) operator.tell(why, "bad");
  showLink(null);
}

/** Switch off what the credential is not good for, and say so: a button that cannot be pressed says why by its title. */
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
    const because = error.status === 401 && !isToken(credential) ? "The gateway knows no such key." : error.message;
    write($("sign-in-state"), because);
    $("credential").select();
  } finally {
    if (submitter) submitter.disabled = false;
  }
});

session.start();
navigate();
