//! `/v1/messages` as a chat: the system prompt and the text blocks of its messages.

use super::{
    Engine, Form, Raw, Refusal, Request, Step,
    translate::{self, Carried, Role, Turns, is_unset},
};

/// What Claude Code puts in front of its system prompt. Engines take it out or blank it, each in its own way.
const BILLING: &[u8] = b"x-anthropic-billing-header";

const CARRIED: Carried = Carried {
    copied: &[
        b"temperature",
        b"top_p",
        b"top_k",
        b"seed",
        b"chat_template_kwargs",
        b"cache_salt",
        b"vllm_xargs",
        b"watermarking",
    ],
    renamed: &[(b"stop_sequences", "stop")],
    // Those that could forbid a continuation have been judged.
    dropped: &[
        b"messages",
        b"system",
        b"max_tokens",
        b"stream",
        b"metadata",
        b"user",
        b"service_tier",
        b"inference_geo",
        b"cache_control",
        b"tool_choice",
        b"frequency_penalty",
        b"presence_penalty",
        b"n",
    ],
    is_default,
};

pub(super) fn form(request: &Request, step: Step<'_>) -> Result<Form, Refusal> {
    let mut turns = Turns::new(request.body.len() + step.so_far.len());
    if let Some(value) = request.value(b"system").filter(|system| !system.is_null()) {
        system(value, step.engine, &mut turns)?;
    }
    let messages = request.value(b"messages").ok_or(Refusal::Untranslatable)?;
    messages.elements().into_iter().try_for_each(|message| self::message(message, &mut turns))?;
    translate::form(request, step, turns, &CARRIED)
}

/// One text, or the texts of its blocks with nothing between them. Without any, llama.cpp still begins with a system
/// message.
fn system(value: Raw<'_>, engine: Engine, turns: &mut Turns) -> Result<(), Refusal> {
    let texts = match value.inside() {
        Some(text) => vec![text],
        None if value.is_array() => blocks(value)?,
        None => return Err(Refusal::Untranslatable),
    };
    if texts.iter().any(|text| text.starts_with(BILLING)) {
        return Err(Refusal::Untranslatable);
    }
    let text = texts.concat();
    if !text.is_empty() || engine == Engine::LlamaCpp {
        turns.push(Role::System, &text);
    }
    Ok(())
}

fn message(message: Raw<'_>, turns: &mut Turns) -> Result<(), Refusal> {
    let (mut role, mut content, mut plain) = (None, None, true);
    message.each_member(|key, value| match key.name().as_ref() {
        b"role" => role = Role::read(value),
        b"content" => content = Some(value),
        _ => plain &= value.is_nothing(),
    });
    // A system message among the others: where it goes depends on the model's template.
    let (true, Some(role @ (Role::User | Role::Assistant)), Some(content)) = (plain, role, content) else {
        return Err(Refusal::Untranslatable);
    };
    if let Some(text) = content.inside() {
        turns.push(role, text);
        return Ok(());
    }
    let texts = blocks(content)?;
    match texts[..] {
        [] => return Err(Refusal::Untranslatable),
        // vLLM leaves it out, llama.cpp does not.
        _ if texts.iter().any(|text| text.is_empty()) => return Err(Refusal::Untranslatable),
        [text] => turns.push(role, text),
        _ => turns.push_parts(role, &texts),
    }
    Ok(())
}

/// The texts of blocks that have nothing else.
fn blocks(content: Raw<'_>) -> Result<Vec<&[u8]>, Refusal> {
    content.elements().into_iter().map(block).collect::<Option<_>>().ok_or(Refusal::Untranslatable)
}

fn block(block: Raw<'_>) -> Option<&[u8]> {
    let (mut text, mut kind, mut plain) = (None, false, true);
    block.each_member(|key, value| match key.name().as_ref() {
        b"text" => text = value.inside(),
        b"type" => kind = value.is("text"),
        // How Anthropic's own servers cache the prompt.
        b"cache_control" => {}
        _ => plain &= value.is_nothing(),
    });
    text.filter(|_| kind && plain)
}

fn is_default(name: &[u8], value: Raw<'_>) -> bool {
    name == b"output_config" && is_unset(value)
}
