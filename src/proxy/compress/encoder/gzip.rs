//! gzip, by zlib-rs.

use flate2::{Compress, Compression, FlushCompress, Status};

use super::{Order, Step, fault};
use crate::error::Error;

/// Level 1: of events that repeat each other it finds what level 6 does, in a tenth of the time.
pub(super) const STREAM: i32 = 1;
/// Level 2: a quarter less of a plain body than level 1.
pub(in super::super) const WHOLE: i32 = 2;
/// 32 KiB. Half of it would save 64 KiB of 312, and cost 3 % of the bytes.
const WINDOW_BITS: u8 = 15;

#[derive(Debug)]
pub(super) struct Gzip {
    codec: Compress,
    /// What was taken is not all flushed.
    open: bool,
}

impl Gzip {
    pub(super) fn new(level: i32) -> Self {
        Self { codec: Compress::new_gzip(Compression::new(level.unsigned_abs()), WINDOW_BITS), open: false }
    }

    pub(super) fn step(&mut self, input: &[u8], order: Order, out: &mut [u8]) -> Result<Step, Error> {
        let how = match order {
            Order::Take => FlushCompress::None,
            // A partial flush is 10 bits where a sync flush is 5 bytes, of about 10 per event; what was taken comes out
            // all the same (RFC 1951 has no better end of a block).
            Order::Flush => FlushCompress::Partial,
            Order::Finish => FlushCompress::Finish,
        };
        self.open = order == Order::Take && (self.open || !input.is_empty());
        let (taken, given) = (self.codec.total_in(), self.codec.total_out());
        let status = self.codec.compress(input, out, how).map_err(fault)?;
        // Both are at most the lengths of the slices.
        let (read, written) = ((self.codec.total_in() - taken) as usize, (self.codec.total_out() - given) as usize);
        let done = match order {
            Order::Take => read == input.len(),
            Order::Flush => read == input.len() && written < out.len(),
            Order::Finish => status == Status::StreamEnd,
        };
        Ok(Step { read, written, done })
    }

    /// Ready for another response. Not when data is left inside: zlib-rs 0.6 forgets to close the block that is open then,
    /// and what comes next does not decode.
    pub(super) fn reset(&mut self) -> bool {
        self.codec.reset();
        !self.open
    }
}
