//! What only the request tells.

use crate::protocol::json::{Malformed, Reader};

/// Whether the two shapes of the answer to `request` hold the same text, as far as that is the request's doing. To be
/// asked before [`convert`](super::convert) only: it reads the whole body.
///
/// A request that ends with words of the assistant has them gone on with: llama.cpp's plain answer repeats them, its
/// stream does not. So does `echo`, each engine in its own way; and what vLLM's servers hand over between each other
/// (`kv_transfer_params`) is in its plain answer alone.
pub fn exchangeable(request: &[u8]) -> bool {
    let mut differs = false;
    let mut reader = Reader::new(request);
    let read = reader
        .members(|reader, key| {
            match key.name().as_ref() {
                b"messages" | b"input" => differs |= ends_with_the_assistant(reader)?,
                b"echo" | b"continue_final_message" => differs |= reader.boolean()? == Some(true),
                b"add_generation_prompt" => differs |= reader.boolean()? == Some(false),
                b"kv_transfer_params" | b"ec_transfer_params" => differs |= reader.present()?,
                _ => reader.skip()?,
            }
            Ok(())
        })
        .and_then(|()| reader.finish());
    read.is_ok() && !differs
}

/// Whether the last of the list was said by another than the user or the system. A text is the user's.
fn ends_with_the_assistant(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    let mut assistant = false;
    reader.elements(|reader| {
        assistant = false;
        reader.members(|reader, key| {
            if !key.is(b"role") {
                return reader.skip();
            }
            assistant = reader.text()?.is_some_and(|role| role.is(b"assistant"));
            Ok(())
        })
    })?;
    Ok(assistant)
}
