// Dialogs with the operator: confirmation before an action, and a notice with its result.

import { $, hide, write } from "./dom.js";

/** Show a dialog; resolves with false for Cancel and Escape. */
function opened(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue !== "" && dialog.returnValue !== "cancel"), { once: true }));
}

/** Ask for confirmation; with `number` returns the entered number, or null. */
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

/** Run `act` and show the result. `done`: a sentence, or a function of the answer. Returns true on success. */
export async function acts(done, act) {
  try {
    const answer = await act();
    notify(typeof done === "function" ? done(answer) : done, "good");
    return true;
  } catch (error) {
    notify(error.message, "bad");
    return false;
  }
}

/** Show a notice; it replaces the last one. */
export function notify(text, level) {
  const notice = $("notice");
  notice.dataset.level = level;
  write(notice.firstElementChild, text);
}

$("notice").lastElementChild.addEventListener("click", () => notify("", "none"));
for (const button of document.querySelectorAll("[data-cancel]")) {
  button.addEventListener("click", () => button.closest("dialog").close("cancel"));
}
