// What both pages use.

export const byId = (id) => document.getElementById(id);
export const address = (path) => new URL(path, document.baseURI).href;

export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

/** Quote a text for a shell. */
export function quote(text) {
  return /^[\w.@%+=:,/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** Copy the text of a node, and say so on the button. */
export async function copy(node, button) {
  try {
    await navigator.clipboard.writeText(node.textContent);
  } catch { // no clipboard without HTTPS: select the text, for the reader to copy
    getSelection().selectAllChildren(node);
    button.textContent = "Selected";
    return;
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}
