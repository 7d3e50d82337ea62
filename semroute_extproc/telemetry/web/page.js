// Refreshes the parts of a view, follows a slider, copies. Without it every view still works.
"use strict";

const LIVE = document.getElementById("live");

// Fetch a view and replace the parts that both pages have, unless the reader is working in one.
async function refresh(url) {
  const answer = await fetch(url, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(answer.status);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-part]")) {
    const other = fresh.getElementById(part.id);
    if (!other) continue;
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    const link = focused && focused.getAttribute("href");
    const [left] = [...part.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
    part.replaceChildren(...other.childNodes);
    if (link) part.querySelector(`[href="${CSS.escape(link)}"]`)?.focus();
    if (left) part.querySelector(".scroll").scrollLeft = left;
  }
  reveal();
}

function reveal() {
  for (const button of document.querySelectorAll("button[data-copy]")) button.hidden = false;
}

const seconds = Number(document.body.dataset.refresh);
if (seconds) {
  const tick = async () => {
    // A reader who selects text would lose it.
    if (!document.hidden && getSelection().isCollapsed) {
      try {
        await refresh(location.href);
        LIVE.textContent = "";
      } catch {
        LIVE.textContent = " · no answer from the server; trying again";
      }
    }
    setTimeout(tick, seconds * 1000);
  };
  setTimeout(tick, seconds * 1000);
}

for (const form of document.querySelectorAll("form[data-live]")) {
  let waiting;
  const follow = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const url = `${location.pathname}?${new URLSearchParams(new FormData(form))}`;
      history.replaceState(null, "", url);
      refresh(url).catch(() => {});
    }, 120);
  };
  form.addEventListener("input", follow);
  form.addEventListener("submit", (event) => { event.preventDefault(); follow(); });
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(text);
    button.textContent = "Selected: press Ctrl-C";
  }
});

reveal();
