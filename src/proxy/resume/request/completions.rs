//! `/v1/completions`: the prompt with the answer so far behind it, as text or as token ids.

use std::io::Write as _;

use super::{Endpoint, Form, Prompt, Refusal, Request, Step, push_escaped};

pub(super) fn by_text(request: &Request, step: Step<'_>) -> Result<Form, Refusal> {
    let asked = &request.asked;
    if !step.is_fresh() && (asked.prompt != Prompt::Text || asked.truncates) {
        return Err(Refusal::Untranslatable);
    }
    let text = &request.body;
    let mut writer = request.writer(&step);
    for member in request.object.members() {
        match member.name(text).as_ref() {
            name if request.drops(&step, name) => {}
            b"prompt" if !step.is_fresh() => {
                let span = member.span();
                let out = writer.keep_name(text, member);
                out.extend_from_slice(&text[span.start..span.end - 1]);
                push_escaped(out, step.so_far);
                out.push(b'"');
            }
            _ => writer.copy(text, member),
        }
    }
    Ok(Form::completions(request.close(&step, writer)))
}

/// Of a chat, whatever the template or the parsers have used stays behind: the ids are the prompt, and the answer is
/// plain text.
pub(super) fn by_ids(request: &Request, step: Step<'_>, left: u64, prompt: &[u32], said: &[u32]) -> Form {
    let text = &request.body;
    let mut writer = request.writer(&step);
    for member in request.object.members() {
        let name = member.name(text);
        let stays = !is_of_prompt(&name)
            && !is_limit(&name)
            && !request.drops(&step, &name)
            && (request.endpoint == Endpoint::Completions || !is_of_chat(&name));
        if stays {
            writer.copy(text, member);
        }
    }
    write_ids(writer.name("prompt"), prompt.iter().chain(said));
    writer.member("max_tokens", left.max(1).to_string());
    writer.member("return_token_ids", "true");
    Form::completions(request.close_limited(&step, writer))
}

/// What is made of ids, or was applied to them when they came to be.
fn is_of_prompt(name: &[u8]) -> bool {
    matches!(name, b"prompt" | b"truncate_prompt_tokens" | b"truncation_side" | b"add_special_tokens")
}

fn is_limit(name: &[u8]) -> bool {
    matches!(name, b"max_tokens" | b"max_completion_tokens" | b"n_predict")
}

/// Members of a chat that mean nothing, or something else, to a completion (`logprobs`: `false` would be zero of
/// them).
fn is_of_chat(name: &[u8]) -> bool {
    matches!(
        name,
        b"messages"
            | b"add_generation_prompt"
            | b"chat_template"
            | b"chat_template_kwargs"
            | b"continue_final_message"
            | b"documents"
            | b"echo"
            | b"function_call"
            | b"functions"
            | b"include_reasoning"
            | b"logprobs"
            | b"media_io_kwargs"
            | b"mm_processor_kwargs"
            | b"modalities"
            | b"parallel_tool_calls"
            | b"prediction"
            | b"reasoning_effort"
            | b"response_format"
            | b"return_prompt_text"
            | b"suffix"
            | b"thinking_token_budget"
            | b"tool_choice"
            | b"tools"
            | b"top_logprobs"
            | b"verbosity"
    )
}

/// A list of ids.
pub(super) fn write_ids<'a>(out: &mut Vec<u8>, ids: impl Iterator<Item = &'a u32>) {
    out.push(b'[');
    for (i, id) in ids.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        // Writing to memory does not fail.
        let _ = write!(out, "{id}");
    }
    out.push(b']');
}
