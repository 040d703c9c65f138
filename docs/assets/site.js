// What is wider than the page scrolls: let it have the focus, so that the keyboard can scroll it, too. Zensical wraps
// tables after the page is loaded. Its buttons beside code are no landmarks of the page.
const finish = () => {
  for (const each of document.querySelectorAll(".md-typeset__scrollwrap")) each.tabIndex = 0;
  for (const each of document.querySelectorAll("nav.md-code__nav")) each.setAttribute("role", "none");
};
new MutationObserver(finish).observe(document.documentElement, { childList: true, subtree: true });
finish();
