// One streamed chat by the Vercel client: node stream.mjs ADDRESS MODEL PROMPT TOKENS prints each piece of text as a
// line of JSON as it comes, then the reason of its end and what it used.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const [address, model, prompt, tokens] = process.argv.slice(2);
const chat = createOpenAICompatible({ name: "engine", baseURL: `${address}/v1`, apiKey: "none", includeUsage: true });
const answer = streamText({
  model: chat.chatModel(model),
  messages: [{ role: "user", content: prompt }],
  maxOutputTokens: Number(tokens),
  temperature: 0,
  maxRetries: 0,
});
for await (const text of answer.textStream) process.stdout.write(`${JSON.stringify(text)}\n`);
const { inputTokens, outputTokens } = await answer.usage;
process.stdout.write(`${JSON.stringify({ finish: await answer.finishReason, usage: [inputTokens, outputTokens] })}\n`);
