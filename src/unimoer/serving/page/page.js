"use strict";

const at = (id) => document.getElementById(id);
let indexed = false;
let asked = 0;

/** A request to this server; raises what it says is wrong. */
async function ask(path, body) {
  const key = at("key").value;
  const headers = {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
  const answer = await fetch(path, body ? {method: "POST", headers, body: JSON.stringify(body)} : {headers});
  if (answer.status === 401) at("locked").hidden = false;
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error.message);
  return found;
}

/** An element with text, which is never taken for markup. */
function make(tag, name, text) {
  const found = document.createElement(tag);
  if (name) found.className = name;
  if (text !== undefined) found.textContent = text;
  return found;
}

function bar(value, least, most) {
  const found = make("meter");
  found.min = 0;
  found.max = 1;
  found.value = most > least ? 0.05 + 0.95 * (value - least) / (most - least) : 1;
  return found;
}

/** One order of documents; `moved` are places in the other order, where they are known. */
function list(target, documents, moved) {
  const scores = documents.map((one) => one.score);
  const [least, most] = [Math.min(...scores), Math.max(...scores)];
  target.replaceChildren(...documents.map((one, place) => {
    const item = make("li");
    item.dataset.id = one.id;
    const score = make("span", "score", one.score.toFixed(3));
    if (moved) {
      const by = moved.get(one.id) - place;
      if (by) score.append(make("b", by > 0 ? "up" : "down", by > 0 ? `▲${by}` : `▼${-by}`));
    }
    item.append(make("span", "place", place + 1), make("span", "id", one.id), score, bar(one.score, least, most));
    const text = make("span", "text", one.text);
    text.title = one.text.slice(0, 1000);
    item.append(text);
    const mark = (on) => document.querySelectorAll("li").forEach(
      (other) => other.classList.toggle("same", on && other.dataset.id === one.id));
    item.addEventListener("mouseenter", () => mark(true));
    item.addEventListener("mouseleave", () => mark(false));
    return item;
  }));
}

/** From the index, or the pasted lines by their vectors: `{id, text, score}`, best first. */
async function retrieve(query) {
  if (indexed) {
    const body = {query, k: Number(at("depth").value), retrieve: at("retrieve").value};
    const found = await ask("v1/search", body);
    return [found.hits, found.milliseconds];
  }
  const texts = at("documents").value.split("\n").filter((line) => line.trim());
  if (!texts.length) throw new Error("Paste some documents, one a line.");
  const vectors = async (input, kind) => (await ask("v1/embeddings", {input, input_type: kind})).data;
  const started = performance.now();
  const [[asked], given] = await Promise.all([vectors([query], "query"), vectors(texts, "document")]);
  const scored = given.map(({embedding, index}) => ({
    id: `line ${index + 1}`, text: texts[index],
    score: embedding.reduce((sum, value, place) => sum + value * asked.embedding[place], 0),
  }));
  return [scored.sort((one, other) => other.score - one.score), {vectors: performance.now() - started}];
}

async function rerank(query, documents) {
  const started = performance.now();
  const {results} = await ask("v1/rerank", {query, documents: documents.map((one) => one.text)});
  const order = results.map(({index, relevance_score}) => ({...documents[index], score: relevance_score}));
  return [order, performance.now() - started];
}

function route({experts, layers}) {
  at("routes").hidden = false;
  at("layers").replaceChildren();
  if (!experts.length) {
    at("routed").textContent = "This model has one adapter for all texts: nothing is routed.";
    return;
  }
  at("routed").textContent = "Share of each expert, by layer: a mean over the query's tokens.";
  const head = make("tr");
  head.append(make("th", "", "layer"), ...experts.map((name) => make("th", "", name)));
  at("layers").append(head, ...layers.map(({name, weights}) => {
    const row = make("tr");
    row.append(make("th", "", name), ...experts.map((expert) => {
      const cell = make("td");
      const share = make("meter");
      share.max = Math.max(1, ...Object.values(weights));
      share.value = weights[expert];
      cell.append(share, weights[expert].toFixed(2));
      return cell;
    }));
    return row;
  }));
}

async function search(mine) {
  const query = at("query").value;
  const [documents, took] = await retrieve(query);
  if (mine !== asked) return;
  at("found").hidden = false;
  list(at("retrieved"), documents);
  at("reranked").replaceChildren();
  const [order, milliseconds] = documents.length ? await rerank(query, documents) : [[], 0];
  if (mine !== asked) return;
  list(at("reranked"), order, new Map(documents.map((one, place) => [one.id, place])));
  const times = Object.entries({...took, rerank: milliseconds}).map(([name, value]) => `${name} ${value.toFixed(0)} ms`);
  at("took").textContent = documents.length ? times.join(", ") : "Nothing found.";
  const routes = await ask("v1/routing", {query});
  if (mine === asked) route(routes);
}

async function submit(event) {
  event?.preventDefault();
  // A later query does not wait for an earlier one, whose answers are then thrown away.
  const mine = ++asked;
  const main = document.querySelector("main");
  main.ariaBusy = "true";
  at("problem").hidden = true;
  try {
    await search(mine);
  } catch (error) {
    if (mine !== asked) return;
    at("problem").textContent = error.message;
    at("problem").hidden = false;
  }
  if (mine === asked) main.ariaBusy = "false";
}

async function start() {
  at("ask").addEventListener("submit", submit);
  try {
    const [model] = (await ask("v1/models")).data;
    at("model").textContent = model.id;
    indexed = model.documents !== null;
    at("about").textContent = indexed
      ? `${model.documents.toLocaleString("en")} documents; retrieved and reranked by one model`
      : "no index; embeds and reranks what you paste";
  } catch (error) {
    at("about").textContent = error.message;
  }
  document.querySelectorAll(".indexed").forEach((one) => { one.hidden = !indexed; });
  document.querySelector(".loose").hidden = indexed;
}

at("key").addEventListener("change", start);
start();
