// The page of `cancelstream serve`. Nothing is loaded from elsewhere, and nothing needs to be built.

const $ = (selector, where = document) => where.querySelector(selector);
const transcript = $("#transcript");
const status = $("#status");
const prompt = $("#prompt");
const send = $("#send");
const stop = $("#stop");

// A reload goes on with the conversation, a new tab begins one.
const conversation = (sessionStorage.conversation ??= crypto.randomUUID?.() ?? String(Math.random()).slice(2));

let answer = null; // what is being streamed, if anything is

// --- what is shown -------------------------------------------------------------------------------------------------

function addTurn(role, text) {
  // Only the last answer can be continued.
  for (const button of document.querySelectorAll(".continue")) button.hidden = true;
  const article = $("#turn").content.cloneNode(true).firstElementChild;
  article.className = role;
  $("h2", article).textContent = role === "user" ? "You" : "Answer";
  $(".text", article).textContent = text;
  transcript.append(article);
  scrollDown();
  return article;
}

function scrollDown() {
  scrollTo(0, document.documentElement.scrollHeight);
}

const REASONS = {
  user: "stopped by you",
  client_disconnect: "cut off: the page was left",
  server_shutdown: "cut off: the server ended",
  timeout: "cut off: it took too long",
};

function showEnd(article, end) {
  const cut = end.state === "interrupted";
  article.classList.toggle("cut", end.state !== "complete");
  const what = { complete: "Complete", interrupted: "Not a whole answer", failed: "Failed", lost: "Connection lost" };
  const why = cut ? `: ${REASONS[end.reason] ?? end.reason ?? "it was cut"}` : "";
  $(".state", article).textContent = what[end.state] + why;
  $(".usage", article).textContent = end.usage ? `${tokens(end.usage.input)} in, ${tokens(end.usage.output)} out` : "";
  $(".cost", article).textContent = end.cost ? cost(end.cost) : "";
  const footer = $("footer", article);
  footer.hidden = false;
  const button = $(".continue", article);
  button.hidden = !cut;
  button.onclick = () => ask("");
  scrollDown();
}

function tokens({ value, low, high, source }) {
  if (source === "reported") return `${value} tokens`;
  const most = high === null ? "" : ` to ${high}`;
  return value === null ? `at least ${low}${most} tokens` : `about ${value} tokens (${low}${most || " or more"})`;
}

function cost({ value, low, high }) {
  const dollars = (amount) => `$${Number(amount).toPrecision(2)}`;
  if (value !== null && value === low && value === high) return dollars(value);
  const range = high === null ? `${dollars(low)} or more` : `${dollars(low)} to ${dollars(high)}`;
  return value === null ? range : `about ${dollars(value)} (${range})`;
}

function say(text) {
  status.textContent = text;
}

function setStreaming(streaming) {
  send.disabled = streaming;
  stop.disabled = !streaming;
  transcript.setAttribute("aria-busy", String(streaming));
}

// --- asking --------------------------------------------------------------------------------------------------------

async function ask(text) {
  if (answer) return;
  addTurn("user", text || "Go on from where you were stopped.");
  const mine = (answer = { controller: new AbortController(), stopId: null, stopping: false });
  const article = addTurn("assistant", "");
  setStreaming(true);
  say("Answering. Press Esc to stop.");
  let end = { state: "lost" };
  try {
    const response = await fetch("chat", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ conversation, prompt: text }),
      signal: mine.controller.signal,
    });
    if (!response.ok) throw new Error(`the server said ${response.status}`);
    for await (const [name, data] of events(response.body)) {
      if (name === "start") mine.stopId = data.stop_id;
      else if (name === "end") end = data;
      else $(".text", article).append(data.delta);
      if (name === "start" && mine.stopping) tellServer(mine);
      if (name === "message") scrollDown();
    }
  } catch (error) {
    if (error.name === "AbortError") end = { state: "interrupted", reason: "user" };
    else console.warn(error);
  }
  answer = null;
  setStreaming(false);
  showEnd(article, end);
  say(end.state === "complete" ? "The answer is complete." : `${$(".state", article).textContent}.`);
  prompt.focus();
}

// Server-Sent Events from a POST, which EventSource cannot make.
async function* events(body) {
  let buffer = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (fields.data) yield [fields.event ?? "message", JSON.parse(fields.data)];
    }
  }
}

// --- stopping ------------------------------------------------------------------------------------------------------

const PATIENCE = 3000; // milliseconds until a stop that the server does not confirm becomes a hang-up

function stopAnswer() {
  const mine = answer;
  if (!mine || mine.stopping) return;
  mine.stopping = true;
  stop.disabled = true;
  say("Stopping.");
  // Leaving the connection stops the answer too, but then its end cannot be told.
  setTimeout(() => answer === mine && mine.controller.abort(), PATIENCE);
  tellServer(mine);
}

async function tellServer(mine) {
  if (!mine.stopId) return; // it comes with the first event
  try {
    const response = await fetch(`stop/${mine.stopId}`, { method: "POST" });
    // 503: it is not known whether the stop was taken, and asking again is safe.
    if (response.status === 503 && answer === mine) setTimeout(() => tellServer(mine), 500);
  } catch {
    mine.controller.abort();
  }
}

// A page that is left may be kept frozen, with its connections open, in case the user comes back: the server would
// see nothing, and the model would go on without a reader.
addEventListener("pagehide", () => answer?.controller.abort());

// --- the user ------------------------------------------------------------------------------------------------------

$("#form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text || answer) return;
  prompt.value = "";
  ask(text);
});

prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("#form").requestSubmit();
});

stop.addEventListener("click", stopAnswer);
addEventListener("keydown", (event) => event.key === "Escape" && stopAnswer());

// What this tab's conversation has so far.
const past = await fetch(`chat/${conversation}`);
if (past.ok) {
  for (const turn of await past.json()) {
    const article = addTurn(turn.role, turn.text);
    if (turn.role === "assistant") showEnd(article, turn);
  }
}
