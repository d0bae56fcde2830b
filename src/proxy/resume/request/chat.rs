//! `/v1/chat/completions`: the same request with the answer so far as the assistant's last message.

use bytes::Bytes;

use super::{Form, Last, Member, Refusal, Request, Step, Writer, go_on, push_answer, push_escaped};

pub(super) fn form(request: &Request, step: Step<'_>) -> Result<Form, Refusal> {
    // Where to put the text, when the client has begun the message itself.
    let begun = match request.asked.last {
        _ if step.is_fresh() => None,
        Last::Assistant(Some(end)) if request.asked.goes_on => Some(end),
        Last::Assistant(_) => return Err(Refusal::Prefill),
        Last::None | Last::Other => None,
    };
    Ok(Form::chat(body(request, &step, begun)))
}

fn body(request: &Request, step: &Step<'_>, begun: Option<usize>) -> Bytes {
    let text = &request.body;
    let mut writer = request.writer(step);
    for member in request.object.members() {
        match member.name(text).as_ref() {
            b"add_generation_prompt" | b"continue_final_message" if !step.is_fresh() => {}
            name if request.drops(step, name) => {}
            b"messages" if !step.is_fresh() => messages(request, step, begun, &mut writer, member),
            _ => writer.copy(text, member),
        }
    }
    if !step.is_fresh() {
        go_on(&mut writer);
    }
    request.close(step, writer)
}

fn messages(request: &Request, step: &Step<'_>, begun: Option<usize>, writer: &mut Writer, member: &Member) {
    let text = &request.body;
    let span = member.span();
    let out = writer.keep_name(text, member);
    if let Some(end) = begun {
        out.extend_from_slice(&text[span.start..end]);
        push_escaped(out, step.so_far);
        return out.extend_from_slice(&text[end..span.end]);
    }
    // It has an element, and ends in a bracket.
    out.extend_from_slice(&text[span.start..span.end - 1]);
    push_answer(out, step.so_far);
}
