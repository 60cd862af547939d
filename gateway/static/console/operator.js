// The person in front of the page: is asked before something is done, and told how it went.

import { $, hide, write } from "./dom.js";

/** Have a dialog's buttons that only leave it do so, and Escape too. */
function opened(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue !== "" && dialog.returnValue !== "cancel"), { once: true }));
}

/** Whether a person says yes to `title`; with `number`, the number they settle on, or null. */
export async function confirms(title, about, yes, number = null) {
  const dialog = $("confirm");
  write($("confirm-title"), title);
  write($("confirm-about"), about);
  write($("confirm-yes"), yes);
  $("confirm-yes").value = "yes";
  hide($("confirm-ask"), number === null);
  $("confirm-number").value = number ?? 0;
  const agreed = await opened(dialog);
  if (number === null) return agreed;
  return agreed ? Number($("confirm-number").value) : null;
}

/** Do it, and tell what came of it: `said` is a sentence, or makes one of the answer. True: it is done. */
export async function acts(said, act) {
  try {
    const answer = await act();
    tell(typeof said === "function" ? said(answer) : said, "good");
    return true;
  } catch (error) {
    tell(error.message, "bad");
    return false;
  }
}

/** Tell something; the next thing told takes its place. */
export function tell(text, level) {
  const notice = $("notice");
  notice.dataset.level = level;
  write(notice.firstElementChild, text);
}

$("notice").lastElementChild.addEventListener("click", () => tell("", "none"));
for (const button of document.querySelectorAll("[data-cancel]")) {
  button.addEventListener("click", () => button.closest("dialog").close("cancel"));
}
