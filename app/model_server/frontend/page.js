// The page uses the same addresses as any other client: GET models, POST predict/NAME. See docs/api.md.

import { address, byId, copy, element, quote } from "./shared.js";

const BARS = 10;
const STEPS = 100;
const FIELDS = 24;
const SMALL_PICTURE = 64;
const ENGINES = { litert: "LiteRT", onnx: "ONNX Runtime", tensorflow: "TensorFlow" };

let catalogue = [];
let model = null;
let widgets = [];
let pressed = null;
let waiting = null;

// ---------------------------------------------------------------- start

try {
  catalogue = (await ask("models")).models;
  byId("models").replaceChildren(...catalogue.map(choice));
  byId("notice").hidden = true;
  byId("model").hidden = false;
  choose(fromHash() ?? catalogue[0]);
} catch (error) {
  byId("notice").textContent = error.message;
  byId("notice").classList.add("wrong");
}

addEventListener("hashchange", () => {
  const named = fromHash();
  if (named && named !== model) choose(named);
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (byId("ask").reportValidity()) predict();
});
byId("ask").addEventListener("input", (event) => {
  if (event.target.type === "file") return;
  press(null);
  describeCall();
});
byId("copy").addEventListener("click", () => copy(byId("curl"), byId("copy")));

function fromHash() {
  return catalogue.find((one) => one.name === decodeURIComponent(location.hash.slice(1)));
}

// ---------------------------------------------------------------- models

function choice(one) {
  const radio = element("input", { type: "radio", name: "model", value: one.name });
  radio.addEventListener("change", () => choose(one));
  return element("label", {}, radio, element("span", {}, one.title), element("small", {}, one.name));
}

function choose(one) {
  const picture = model && takesPicture(model) ? widgets[0].value() : null;
  model = one;
  for (const radio of byId("models").elements) radio.checked = radio.value === one.name;
  document.title = `${one.title} – Slipway`;
  history.replaceState(null, "", `#${encodeURIComponent(one.name)}`);
  byId("title").textContent = one.title;
  byId("description").textContent = one.description;
  const others = one.versions.filter((version) => version !== one.version);
  const also = others.length ? ` (also served: ${others.join(", ")})` : "";
  byId("facts").textContent = `Version ${one.version}${also}, from ${one.source_format}, answered by ${ENGINES[one.engine]}.`;
  widgets = one.inputs.map(widget);
  byId("inputs").replaceChildren(...widgets.map((part) => part.node));
  byId("predict").hidden = takesPicture(one);
  showSamples();
  empty();
  if (takesPicture(one)) {
    if (picture) widgets[0].set(picture).then(predict);
  } else if (one.examples.length) {
    fill(one.examples[0].row);
  }
  describeCall();
}

function takesPicture(one) {
  return one.inputs.length === 1 && one.inputs[0].kind === "image";
}

// ---------------------------------------------------------------- inputs: { node, value(), set(value) }

function widget(spec) {
  const count = spec.shape.slice(1).reduce((all, size) => all * size, 1);
  if (spec.kind === "image") return pictureWidget(spec);
  if (spec.kind === "columns") return fieldsWidget(spec, spec.columns, true);
  if (spec.dtype === "string" && count === 1) return fieldsWidget(spec, [spec.name], false);
  if (spec.shape.length === 2 && count >= 1 && count <= FIELDS) {
    return fieldsWidget(spec, Array.from({ length: count }, (_, index) => `${index + 1}`), false);
  }
  return jsonWidget(spec);
}

function pictureWidget(spec) {
  let file = null;
  const chooser = element("input", { type: "file", accept: "image/*", ariaLabel: "Choose a picture" });
  const hint = [
    element("span", {}, "Drop a picture here"),
    element("small", {}, "or ", element("strong", {}, "choose one"), ". It is not kept."),
  ];
  const drop = element("label", { className: "drop" }, chooser, ...hint);
  const take = async (chosen) => {
    press(null);
    await set(chosen);
    if (takesPicture(model)) predict();
    else describeCall();
  };
  chooser.addEventListener("change", () => chooser.files[0] && take(chooser.files[0]));
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });

  async function set(value) {
    file = value instanceof Blob ? value : await fetchFile(value.url);
    const preview = picture(URL.createObjectURL(file), file.name);
    preview.addEventListener("error", () => preview.replaceWith(element("span", {}, file.name)));
    drop.replaceChildren(chooser, preview, element("small", {}, file.name));
  }

  const node = model.inputs.length > 1 ? group(spec.name, drop) : drop;
  return { spec, node, set, value: () => file };
}

function fieldsWidget(spec, names, named) {
  const text = spec.dtype === "string";
  const fields = names.map((name) =>
    element("input", { name, required: !text, ...(text ? { type: "text" } : { type: "number", step: "any" }) }));
  const caption = (name) => (name === spec.name ? "" : name.replaceAll("_", " "));
  const labels = names.map((name, index) => element("label", {}, caption(name), fields[index]));
  for (const field of fields) field.ariaLabel = `${spec.name} ${field.name}`;
  const read = (field) => (text ? field.value : field.value === "" ? null : Number(field.value));
  return {
    spec,
    node: group(spec.name, element("div", { className: "fields" }, ...labels)),
    value: () => {
      if (named) return Object.fromEntries(names.map((name, index) => [name, read(fields[index])]));
      return text && spec.shape.length === 1 ? read(fields[0]) : fields.map(read);
    },
    set: async (value) => {
      const values = named && !Array.isArray(value) ? names.map((name) => value[name]) : [value].flat();
      fields.forEach((field, index) => { field.value = values[index] ?? ""; });
    },
  };
}

function jsonWidget(spec) {
  const sizes = spec.shape.slice(1).map((size) => (size < 0 ? "any" : size)).join(" × ");
  const placeholder = `JSON, ${sizes} of ${spec.dtype}`;
  const area = element("textarea", { required: true, spellcheck: false, placeholder });
  area.setAttribute("aria-label", spec.name);
  return {
    spec,
    node: group(`${spec.name}, ${sizes}`, area),
    value: () => {
      try {
        return JSON.parse(area.value || "null");
      } catch {
        throw new Error(`${spec.name} is not JSON: write nested lists of numbers, [[1, 2], [3, 4]].`);
      }
    },
    set: async (value) => { area.value = JSON.stringify(value); },
  };
}

function group(title, ...parts) {
  return element("fieldset", {}, element("legend", {}, title), ...parts);
}

/** Put a sample's row into the widgets. */
async function fill(row) {
  for (const part of widgets) {
    const { name, columns = [] } = part.spec;
    const isObject = row !== null && typeof row === "object" && !Array.isArray(row) && !("url" in row);
    if (!isObject) await part.set(row);
    else if (name in row && !columns.includes(name)) await part.set(row[name]);
    else await part.set(row);
  }
}

// ---------------------------------------------------------------- samples

function showSamples() {
  const buttons = model.examples.map((example) => {
    const isPicture = Boolean(example.row?.url);
    const face = isPicture ? picture(example.row.url, example.name) : example.name;
    const button = element("button", { type: "button", title: example.name }, face);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", async () => {
      press(button);
      try {
        await fill(example.row);
        await predict();
      } catch (error) {
        fail(error);
      }
    });
    return element("li", {}, button);
  });
  pressed = null;
  byId("samples").hidden = !buttons.length;
  byId("inputs")[takesPicture(model) ? "after" : "before"](byId("samples"));
  byId("samples").querySelector("ul").replaceChildren(...buttons);
}

function press(button) {
  pressed?.setAttribute("aria-pressed", "false");
  button?.setAttribute("aria-pressed", "true");
  pressed = button;
}

// ---------------------------------------------------------------- asking

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server did not answer. It may be restarting: try again in a moment.");
  }
  const text = await response.text();
  let body = null;
  try { body = JSON.parse(text); } catch { /* a proxy's page, not the server's */ }
  if (!response.ok) throw new Error(body?.error ?? `The server answered with status ${response.status}.`);
  if (!body) throw new Error("The answer was not JSON.");
  return body;
}

async function fetchFile(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`The sample could not be fetched: status ${response.status}.`);
  return new File([await response.blob()], url.split("/").pop());
}

/** The row as JSON has it; a picture that is one input of several is base64. */
async function row() {
  if (widgets.length === 1) return widgets[0].value();
  const row = {};
  for (const part of widgets) {
    const value = part.value();
    if (part.spec.kind === "columns") Object.assign(row, value);
    else row[part.spec.name] = part.spec.kind === "image" ? { b64: value && (await base64(value)) } : value;
  }
  return row;
}

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** Of several versions, the one that the page describes: a request without a version may go to the canary. */
function predictPath() {
  const path = `predict/${encodeURIComponent(model.name)}`;
  return model.versions.length > 1 ? `${path}/versions/${model.version}` : path;
}

async function predict() {
  waiting?.abort();
  const mine = (waiting = new AbortController());
  byId("answer").setAttribute("aria-busy", "true");
  try {
    const options = { method: "POST", signal: mine.signal };
    if (takesPicture(model)) {
      options.body = new FormData();
      options.body.append("file", widgets[0].value());
    } else {
      options.body = JSON.stringify({ row: await row() });
      options.headers = { "Content-Type": "application/json" };
    }
    describeCall();
    const start = performance.now();
    const answer = await ask(predictPath(), options);
    if (mine === waiting) show(answer, performance.now() - start);
  } catch (error) {
    if (mine === waiting && error.name !== "AbortError") fail(error);
  }
}

// ---------------------------------------------------------------- answers

function put(...nodes) {
  byId("answer").removeAttribute("aria-busy");
  byId("answer").replaceChildren(...nodes);
}

function empty() {
  waiting?.abort();
  const what = takesPicture(model) ? "Choose a picture" : "Press Predict";
  const sample = model.examples.length ? ", or take a sample," : "";
  put(element("p", { className: "empty" }, `${what}${sample} and the answer appears here.`));
}

function fail(error) {
  const note = element("p", { className: "error" }, error.message);
  note.setAttribute("role", "alert");
  put(note);
}

function show(answer, roundTrip) {
  const outputs = model.outputs.map((spec) => output(spec, answer.answers[0][spec.name]));
  const time = `${number(answer.milliseconds, 3)} ms on the server, ${number(roundTrip, 3)} ms in all`;
  put(...outputs, element("p", { className: "time" }, time));
}

function output(spec, given) {
  const parts = model.outputs.length > 1 ? [element("h3", {}, spec.name)] : [];
  if (given.image !== undefined) {
    parts.push(given.image ? drawn(spec, given.image.b64) : element("p", { className: "headline" }, "not a picture"));
  } else if (Array.isArray(given.label)) {
    parts.push(steps(given));
  } else if (given.label !== undefined && given.label !== null) {
    const sure = given.probability === undefined ? "" : element("small", {}, percent(given.probability));
    parts.push(element("p", { className: "headline" }, given.label, sure), bars(scores(spec, given), given.label));
  } else {
    parts.push(...numbers(given.values));
  }
  return element("div", { className: "output" }, ...parts);
}

function drawn(spec, b64) {
  const bytes = Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0));
  return picture(URL.createObjectURL(new Blob([bytes], { type: "image/png" })), spec.name);
}

/** The label of each step in their order; of a mask, which has rows of steps, the labels as JSON. */
function steps(given) {
  if (given.label.some(Array.isArray)) {
    return element("pre", { className: "raw", tabIndex: 0 }, JSON.stringify(given.label));
  }
  const rows = given.label.slice(0, STEPS).map((label, index) => {
    const share = given.probability?.[index] ?? 0;
    return bar("", label ?? "not a number", share, given.probability ? percent(share) : "");
  });
  if (given.label.length > STEPS) {
    rows.push(element("li", { className: "more" }, `and ${given.label.length - STEPS} more`));
  }
  return element("ol", { className: "bars" }, ...rows);
}

function scores(spec, given) {
  const values = [given.values].flat(Infinity);
  const labels = spec.labels?.length ? spec.labels : values.map((_, index) => `${index}`);
  if (spec.kind === "binary") {
    const [no, yes] = spec.labels?.length ? spec.labels : ["0", "1"];
    return [[yes, values[0]], [no, 1 - values[0]]];
  }
  return values.map((value, index) => [labels[index], value]);
}

function bars(pairs, best) {
  const sorted = [...pairs].sort((one, other) => other[1] - one[1]);
  const likely = pairs.every(([, value]) => value >= 0 && value <= 1);
  const largest = Math.max(...pairs.map(([, value]) => Math.abs(value)), Number.MIN_VALUE);
  const rows = sorted.slice(0, BARS).map(([label, value]) => {
    const share = likely ? value : Math.max(value, 0) / largest;
    return bar(label === best ? "best" : "", label, share, likely ? percent(value) : number(value));
  });
  if (sorted.length > BARS) rows.push(element("li", { className: "more" }, `and ${sorted.length - BARS} more`));
  return element("ol", { className: "bars" }, ...rows);
}

function bar(className, label, share, value) {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${100 * share}%`;
  return element("li", { className },
    element("span", { className: "label", title: label }, label),
    element("span", { className: "track" }, fill),
    element("span", { className: "value" }, value));
}

/** Plain numbers: a single one large, a few as bars if they lie between 0 and 1, more as JSON. */
function numbers(values) {
  const flat = [values].flat(Infinity);
  const plain = flat.every((value) => typeof value === "number");
  const only = plain && flat.length === 1 ? number(flat[0]) : flat[0];
  const headline = flat.length === 1 ? [element("p", { className: "headline" }, `${only}`)] : [];
  const likely = plain && flat.every((value) => value >= 0 && value <= 1);
  if (likely && headline.length) {
    return [...headline, element("ol", { className: "bars" }, bar("best", "0", flat[0], "1"))];
  }
  if (likely && flat.length <= BARS) return [bars(flat.map((value, index) => [`${index + 1}`, value]), null)];
  return headline.length ? headline : [element("pre", { className: "raw", tabIndex: 0 }, JSON.stringify(values))];
}

function number(value, digits = 4) {
  return value === null ? "not a number" : value.toLocaleString("en", { maximumSignificantDigits: digits });
}

function percent(value) {
  if (value > 0 && value < 0.0005) return "< 0.1 %";
  if (value < 1 && value >= 0.9995) return "> 99.9 %";
  return `${(100 * value).toFixed(1)} %`;
}

// ---------------------------------------------------------------- the call

async function describeCall() {
  const url = address(predictPath());
  if (takesPicture(model)) {
    byId("curl").textContent = `curl -F file=@${quote(widgets[0].value()?.name ?? "picture.png")} ${url}`;
    return;
  }
  let body;
  try {
    body = JSON.stringify({ row: await row() }, (key, value) => (key === "b64" ? "…" : value));
  } catch {
    return; // not JSON yet: it is being typed
  }
  byId("curl").textContent = `curl -H 'Content-Type: application/json' -d ${quote(body)} ${url}`;
}

// ---------------------------------------------------------------- small helpers

function picture(url, text) {
  const image = element("img", { src: url, alt: text });
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < SMALL_PICTURE));
  return image;
}
