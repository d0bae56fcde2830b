// The JavaScript clients, once over: node clients.mjs ADDRESS MODEL prints one JSON object, the answer of each case
// by its name. The test runs it twice, directly and through the gateway, and compares.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const [address, model] = process.argv.slice(2);
const baseURL = `${address}/v1`;
const greedy = { model, temperature: 0, seed: 1 };
const messages = [{ role: "user", content: "Say hello in French." }];

const openai = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const vercel = createOpenAICompatible({ name: "engine", baseURL, apiKey: "none" }).chatModel(model);

/** All items of an async iterable. */
async function all(items) {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
}

/** What the client says about a refused call. */
async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status ?? error.statusCode, code: error.code ?? null };
  }
  throw new Error("the call was not refused");
}

const cases = {
  openai_chat: () => openai.chat.completions.create({ ...greedy, messages, max_tokens: 6 }),
  openai_stream: async () =>
    all(await openai.chat.completions.create({ ...greedy, messages, max_tokens: 6, stream: true })),
  openai_stream_helper: async () => {
    const stream = openai.chat.completions.stream({ ...greedy, messages, max_tokens: 6 });
    return (await stream.finalChatCompletion()).choices;
  },
  openai_responses: async () =>
    all(
      await openai.responses.create({
        model,
        input: "Say hello in French.",
        max_output_tokens: 4,
        temperature: 0,
        stream: true,
      }),
    ),
  openai_bad_request: () => refusal(openai.chat.completions.create({ ...greedy, messages, top_logprobs: 2 })),
  ai_generate: async () => {
    const { text, finishReason, usage } = await generateText({
      model: vercel,
      messages,
      maxOutputTokens: 6,
      temperature: 0,
      maxRetries: 0,
    });
    return { text, finishReason, usage };
  },
  ai_stream: async () => {
    const answer = streamText({ model: vercel, messages, maxOutputTokens: 6, temperature: 0, maxRetries: 0 });
    const parts = await all(answer.textStream);
    return { parts, finishReason: await answer.finishReason };
  },
};

const results = {};
for (const [name, run] of Object.entries(cases)) results[name] = await run();
process.stdout.write(JSON.stringify(results));
