//! brotli.

use brotli::enc::{
    StandardAlloc,
    encode::{BrotliEncoderOperation, BrotliEncoderStateStruct},
};

use super::{Order, Step, fault};
use crate::error::Error;

/// Qualities 0 and 1 do not look back beyond a flush: with one per event they compress nothing.
pub(super) const STREAM: i32 = 2;
/// 5 finds 2 % more and takes twice the memory.
pub(in super::super) const WHOLE: i32 = 4;
/// 64 KiB. The default, 4 MiB, is 8 MiB of address space for each stream, filled by a long one.
pub(in super::super) const WINDOW_LOG: i32 = 16;

pub(super) struct Br(BrotliEncoderStateStruct<StandardAlloc>);

impl Br {
    pub(super) fn new(quality: i32) -> Self {
        let mut state = BrotliEncoderStateStruct::new(StandardAlloc::default());
        (state.params.quality, state.params.lgwin) = (quality, WINDOW_LOG);
        Self(state)
    }

    pub(super) fn step(&mut self, input: &[u8], order: Order, out: &mut [u8]) -> Result<Step, Error> {
        let operation = match order {
            Order::Take => BrotliEncoderOperation::BROTLI_OPERATION_PROCESS,
            Order::Flush => BrotliEncoderOperation::BROTLI_OPERATION_FLUSH,
            Order::Finish => BrotliEncoderOperation::BROTLI_OPERATION_FINISH,
        };
        let (mut left, mut read, mut room, mut written) = (input.len(), 0, out.len(), 0);
        let well = self.0.compress_stream(
            operation,
            &mut left,
            input,
            &mut read,
            &mut room,
            out,
            &mut written,
            &mut None,
            &mut |_, _, _, _| (),
        );
        if !well {
            return Err(fault("brotli refused its input"));
        }
        let done = left == 0
            && match order {
                Order::Take => true,
                Order::Flush => !self.0.has_more_output(),
                Order::Finish => self.0.is_finished(),
            };
        Ok(Step { read, written, done })
    }
}

impl std::fmt::Debug for Br {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Br")
    }
}
