//! `/v1/responses` as a chat: instructions and the text of its input items.

use super::{
    Engine, Form, Raw, Refusal, Request, Step,
    translate::{self, Carried, Role, Turns, is_unset},
};

const CARRIED: Carried = Carried {
    copied: &[
        b"temperature",
        b"top_p",
        b"top_k",
        b"min_p",
        b"seed",
        b"stop",
        b"stop_token_ids",
        b"ignore_eos",
        b"repetition_penalty",
        b"logit_bias",
        b"skip_special_tokens",
        b"chat_template_kwargs",
        b"cache_salt",
        b"priority",
        b"vllm_xargs",
        b"watermarking",
    ],
    renamed: &[],
    // Those that could forbid a continuation have been judged.
    dropped: &[
        b"input",
        b"instructions",
        b"max_output_tokens",
        b"stream",
        b"stream_options",
        b"store",
        b"background",
        b"include",
        b"metadata",
        b"user",
        b"safety_identifier",
        b"prompt_cache_key",
        b"prompt_cache_retention",
        b"service_tier",
        b"parallel_tool_calls",
        b"max_tool_calls",
        b"tool_choice",
        b"top_logprobs",
        b"frequency_penalty",
        b"presence_penalty",
        b"n",
        b"request_id",
        b"session_id",
    ],
    is_default,
};

pub(super) fn form(request: &Request, step: Step<'_>) -> Result<Form, Refusal> {
    let mut turns = Turns::new(request.body.len() + step.so_far.len());
    instructions(request.value(b"instructions"), step.engine, &mut turns)?;
    let input = request.value(b"input").ok_or(Refusal::Untranslatable)?;
    match input.inside() {
        Some(text) => turns.push(Role::User, text),
        // Another value has no elements.
        None => input.elements().into_iter().try_for_each(|item| self::item(item, &mut turns))?,
    }
    translate::form(request, step, turns, &CARRIED)
}

/// vLLM and SGLang leave empty instructions out; llama.cpp begins with a system message wherever there is the member.
fn instructions(value: Option<Raw<'_>>, engine: Engine, turns: &mut Turns) -> Result<(), Refusal> {
    let Some(value) = value else { return Ok(()) };
    let text = match value.inside() {
        Some(text) => text,
        None if value.is_null() => b"",
        None => return Err(Refusal::Untranslatable),
    };
    if !text.is_empty() || engine == Engine::LlamaCpp {
        turns.push(Role::System, text);
    }
    Ok(())
}

fn item(item: Raw<'_>, turns: &mut Turns) -> Result<(), Refusal> {
    let (mut role, mut content, mut refusal) = (None, None, None);
    item.each_member(|key, value| match key.name().as_ref() {
        b"role" => role = Role::read(value),
        b"content" => content = Some(value),
        b"type" if value.is("item_reference") => refusal = Some(Refusal::Stateful),
        b"type" if !value.is_null() && !value.is("message") => refusal = refusal.or(Some(Refusal::Untranslatable)),
        b"type" | b"id" | b"status" => {}
        _ if value.is_nothing() => {}
        _ => refusal = refusal.or(Some(Refusal::Untranslatable)),
    });
    let (None, Some(role), Some(content)) = (refusal, role, content) else {
        return Err(refusal.unwrap_or(Refusal::Untranslatable));
    };
    // llama.cpp makes one message of them, vLLM two.
    if role == Role::Assistant && turns.last() == Some(role) {
        return Err(Refusal::Untranslatable);
    }
    if let Some(text) = content.inside() {
        turns.push(role, text);
        return Ok(());
    }
    let texts: Vec<&[u8]> =
        content.elements().into_iter().map(part).collect::<Option<_>>().ok_or(Refusal::Untranslatable)?;
    match texts[..] {
        [] => return Err(Refusal::Untranslatable),
        [text] => turns.push(role, text),
        // vLLM takes the first of them alone.
        _ if role == Role::Assistant => return Err(Refusal::Untranslatable),
        _ => turns.push_parts(role, &texts),
    }
    Ok(())
}

/// The text of a part that has nothing else.
fn part(part: Raw<'_>) -> Option<&[u8]> {
    let (mut text, mut plain) = (None, true);
    part.each_member(|key, value| match key.name().as_ref() {
        b"text" => text = value.inside(),
        b"type" => plain &= value.is("input_text") || value.is("output_text") || value.is("text"),
        // Citations of an earlier answer, which no engine shows the model.
        b"annotations" | b"logprobs" => {}
        _ => plain &= value.is_nothing(),
    });
    text.filter(|_| plain)
}

fn is_default(name: &[u8], value: Raw<'_>) -> bool {
    match name {
        b"truncation" => value.is("disabled"),
        b"include_reasoning" => value.is_true(),
        b"reasoning" => is_unset(value),
        b"text" => {
            let mut default = value.is_object();
            // A format other than text has been refused.
            value.each_member(|key, value| default &= key.is(b"format") || value.is_null() || value.is("medium"));
            default
        }
        _ => false,
    }
}
