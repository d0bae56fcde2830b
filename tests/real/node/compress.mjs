// One streamed chat by Node: node compress.mjs CLIENT ADDRESS CODING BODY HEADERS, where CLIENT is `fetch` or `openai`.
// Prints a line `{}` when the head is here, then the JSON of each event as soon as it was decoded.

import OpenAI from "openai";

const [client, address, coding, body, headers] = process.argv.slice(2);
const sent = { ...JSON.parse(headers), ...(coding ? { "accept-encoding": coding } : {}) };
const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

/** The events of a decoded stream, each when its last byte is here. */
async function* events(stream) {
  let held = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    held += text;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const event of whole) if (event.startsWith("data: {")) yield JSON.parse(event.slice("data: ".length));
  }
}

async function open() {
  if (client === "openai") {
    const openai = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
    return openai.chat.completions.create(JSON.parse(body), { headers: sent });
  }
  const answer = await fetch(`${address}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...sent },
    body,
    signal: AbortSignal.timeout(60_000),
  });
  const told = answer.headers.get("content-encoding") ?? "";
  if (coding && coding !== told) throw new Error(`the answer's coding is ${JSON.stringify(told)}`);
  return events(answer.body);
}

const stream = await open();
print({});
for await (const event of stream) print(event);
