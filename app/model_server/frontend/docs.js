// Shows openapi.json: by group, each operation with what it takes and answers, its examples, and a form that asks it.

import { address, byId, copy, element, quote } from "./shared.js";

let api = null;

try {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(`The server answered with status ${response.status}.`);
  api = await response.json();
  const sections = api.tags.map(section).filter(Boolean);
  byId("operations").replaceChildren(...sections);
  byId("groups").replaceChildren(...sections.map((one) =>
    element("li", {}, element("a", { href: `#${one.id}` }, one.firstChild.textContent))));
  byId("groups").append(element("li", {}, element("a", { href: "openapi.json" }, "openapi.json")));
  byId("notice").hidden = true;
  openNamed();
  addEventListener("hashchange", openNamed);
} catch (error) {
  byId("notice").textContent = `${error.message} The document is at openapi.json.`;
  byId("notice").classList.add("wrong");
}

function openNamed() {
  const named = byId(decodeURIComponent(location.hash.slice(1)));
  if (named?.classList.contains("operation")) named.open = true;
  named?.scrollIntoView();
}

// ---------------------------------------------------------------- groups and operations

function section({ name, description }) {
  const found = Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).filter(([, one]) => one.tags[0] === name).map(([method, one]) => operation(path, method, one)));
  if (!found.length) return null;
  const id = name.toLowerCase().replaceAll(" ", "-");
  return element("section", { id }, element("h2", {}, name), element("p", {}, description), ...found);
}

function operation(path, method, described) {
  const node = element("details", { className: "operation card", id: described.operationId },
    element("summary", {},
      element("b", { className: method }, method.toUpperCase()),
      element("code", {}, path),
      element("span", {}, described.summary)));
  node.addEventListener("toggle", () => {
    if (node.open && node.children.length === 1) node.append(details(path, method, described));
  });
  return node;
}

function details(path, method, described) {
  const parts = described.description ? [element("p", {}, described.description)] : [];
  parts.push(form(path, method, described), ...answers(described));
  return element("div", {}, ...parts);
}

function answers({ responses }) {
  const [kind, media] = Object.entries(responses[200].content)[0];
  const errors = Object.entries(responses).filter(([code]) => code !== "200").flatMap(([code, one]) =>
    [element("dt", {}, code), element("dd", {}, resolved(one).description)]);
  const examples = Object.entries(media.examples ?? {});
  return [
    element("h3", {}, `Answers ${kind}`),
    ...(media.schema ? [block(shape(media.schema))] : []),
    ...examples.slice(0, 1).flatMap(([name, one]) =>
      [element("h3", {}, `For example, to ${name}`), element("p", {}, one.description), block(pretty(one.value))]),
    element("dl", {}, ...errors),
  ];
}

// ---------------------------------------------------------------- asking

function form(path, method, { parameters = [], requestBody }) {
  const all = parameters.map(resolved);
  const medias = Object.entries(requestBody?.content ?? {});
  const fields = all.filter((one) => one.in === "path").map(({ name, example }) => element("input", { name, value: example, required: true }));
  const kinds = element("select", { ariaLabel: "Content type" }, ...medias.map(([kind]) => element("option", {}, kind)));
  const body = element("div", { className: "answer" });
  const call = block("");
  const answer = element("div", { className: "answer" });
  answer.setAttribute("aria-live", "polite");
  const copyButton = element("button", { type: "button", className: "quiet" }, "Copy");
  copyButton.addEventListener("click", () => copy(call, copyButton));

  const url = () => address(path.slice(1).replace(/{(\w+)}/g, (_, name) =>
    encodeURIComponent(fields.find((field) => field.name === name).value)));
  const isJson = () => kinds.value === "application/json";
  const given = () => body.querySelector("textarea, input");
  const describe = () => { call.textContent = curl(kinds.value, given(), url()); };

  function choose() {
    const [, media] = medias.find(([kind]) => kind === kinds.value);
    const field = isJson()
      ? element("textarea", { required: true, spellcheck: false, ariaLabel: "Body" })
      : element("input", { type: "file", required: true, ariaLabel: "File" });
    const buttons = Object.entries(media.examples ?? {}).map(([name, one]) => {
      const button = element("button", { type: "button", className: "quiet", title: one.description ?? "" }, name);
      button.addEventListener("click", async () => {
        for (const other of buttons) other.ariaPressed = `${other === button}`;
        if ("value" in one) field.value = pretty(one.value);
        else field.files = await fetched(one.externalValue);
        describe();
      });
      return button;
    });
    body.replaceChildren(element("div", { className: "line" }, ...buttons), field, block(shape(media.schema)));
    if (Object.keys(media.schema).length === 0) body.lastChild.remove();
    buttons[0]?.click();
    describe();
  }

  async function send(event) {
    event.preventDefault();
    const start = performance.now();
    try {
      const response = await fetch(url(), options(method, kinds.value, given()));
      const kind = response.headers.get("Content-Type") ?? "";
      const shown = kind.startsWith("image/")
        ? element("img", { src: URL.createObjectURL(await response.blob()), alt: "The answer" })
        : block(parsed(await response.text()));
      const time = `${response.status} ${response.statusText}, ${Math.round(performance.now() - start)} ms`;
      answer.replaceChildren(element("h3", { className: "status" }, time), shown);
    } catch {
      answer.replaceChildren(block("The server did not answer. It may be restarting: try again in a moment."));
    }
  }

  const parts = [];
  if (fields.length) {
    const labels = fields.map((field) => element("label", {}, field.name, field));
    parts.push(element("div", { className: "fields" }, ...labels));
  }
  if (medias.length) {
    parts.push(element("div", { className: "line" }, element("h3", {}, "Takes"), kinds), body);
    kinds.addEventListener("change", choose);
    choose();
  }
  for (const { name, description } of all.filter((one) => one.in === "header")) {
    parts.push(element("dl", {}, element("dt", {}, `Header ${name}`), element("dd", {}, description)));
  }
  parts.push(
    element("div", { className: "line" }, element("h3", {}, "From a shell"), copyButton), call,
    element("button", { className: "primary" }, "Send"), answer);
  const node = element("form", {}, ...parts);
  node.addEventListener("submit", send);
  node.addEventListener("input", describe);
  describe();
  return node;
}

function options(method, kind, field) {
  if (!field) return { method };
  if (field.type !== "file") return { method, body: field.value, headers: { "Content-Type": kind } };
  const [file] = field.files;
  if (kind !== "multipart/form-data") return { method, body: file, headers: { "Content-Type": file.type } };
  const body = new FormData();
  body.append("file", file);
  return { method, body };
}

function curl(kind, field, url) {
  const [file] = field?.files ?? [];
  const name = quote(file?.name ?? "picture.png");
  const header = (value) => `-H ${quote(`Content-Type: ${value}`)}`;
  if (!field) return `curl ${quote(url)}`;
  if (field.type !== "file") return `curl ${header(kind)} -d ${quote(oneLine(field.value))} ${quote(url)}`;
  if (kind === "multipart/form-data") return `curl -F file=@${name} ${quote(url)}`;
  return `curl ${header(file?.type || "image/png")} --data-binary @${name} ${quote(url)}`;
}

/** Fetch an example's file, as a chooser holds it. */
async function fetched(path) {
  const chosen = new DataTransfer();
  const blob = await (await fetch(path)).blob();
  chosen.items.add(new File([blob], path.split("/").pop(), { type: blob.type }));
  return chosen.files;
}

// ---------------------------------------------------------------- text

function resolved(schema) {
  return schema.$ref ? schema.$ref.slice(2).split("/").reduce((part, key) => part[key], api) : schema;
}

/** A schema in short: float | null, list[2] of float, { name: string }, this or that. */
function shape(reference, indent = "") {
  const schema = resolved(reference);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map((one) => shape(one, indent)).join(`\n${indent}or `);
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.prefixItems) return `[${schema.prefixItems.map((one) => shape(one, indent)).join(", ")}]`;
  if (schema.type === "array") return list(schema, indent);
  if (!schema.properties) {
    const kinds = [schema.type ?? "anything"].flat();
    return kinds.map((one) => (one === "null" ? one : schema.format ?? one)).join(" | ");
  }
  const inner = `${indent}  `;
  const lines = Object.entries(schema.properties).map(([name, one]) => {
    const optional = schema.required?.includes(name) ? "" : "?";
    const remark = resolved(one).description ? `  # ${resolved(one).description}` : "";
    return `${inner}${name}${optional}: ${shape(one, inner)}${remark}\n`;
  });
  return `{${schema.description ? `  # ${schema.description}` : ""}\n${lines.join("")}${indent}}`;
}

/** Nested lists by their sizes: list[8 × 8 × 1] of float. */
function list(schema, indent) {
  const sizes = [];
  let inner = schema;
  for (; inner.type === "array" && !inner.prefixItems; inner = resolved(inner.items ?? {})) {
    sizes.push(inner.maxItems !== undefined && inner.minItems === inner.maxItems ? inner.maxItems : "any");
  }
  const size = sizes.length > 1 || sizes[0] !== "any" ? `[${sizes.join(" × ")}]` : "";
  return `list${size} of ${shape(inner, indent)}`;
}

/** JSON over several lines, with each list of plain values on one. A line never breaks within a text. */
function pretty(value) {
  const text = JSON.stringify(value, null, 2);
  return text.replace(/\[\n([^[\]{}]*?)\n\s*\]/g, (_, inner) => `[${inner.trim().replace(/\n\s*/g, " ")}]`);
}

function oneLine(json) {
  return json.replace(/,\n\s*/g, ", ").replace(/\n\s*/g, "");
}

function parsed(text) {
  try { return pretty(JSON.parse(text)); } catch { return text; }
}

function block(text) {
  return element("pre", { tabIndex: 0 }, text);
}
