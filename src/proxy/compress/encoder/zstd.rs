//! zstd, one frame per response.

use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation as _, OutBuffer};

use super::{Order, Step, fault};
use crate::error::Error;

/// The library's own default takes 824 KiB for each stream.
pub(in super::super) const LEVEL: i32 = 1;
/// 32 KiB. The level's own, 512 KiB, is filled by a long stream: 548 KiB resident in place of 114, for 0.2 % of the
/// bytes.
pub(in super::super) const WINDOW_LOG: u32 = 15;
/// 32 KiB of table: as many places as the window has 4-byte words. Twice that finds nothing more.
pub(in super::super) const HASH_LOG: u32 = 13;

pub(super) struct Zstd(Encoder<'static>);

impl Zstd {
    pub(super) fn new() -> Result<Self, Error> {
        let mut encoder = Encoder::new(LEVEL).map_err(fault)?;
        for parameter in [CParameter::WindowLog(WINDOW_LOG), CParameter::HashLog(HASH_LOG)] {
            encoder.set_parameter(parameter).map_err(fault)?;
        }
        Ok(Self(encoder))
    }

    pub(super) fn step(&mut self, input: &[u8], order: Order, out: &mut [u8]) -> Result<Step, Error> {
        let (mut input, mut out) = (InBuffer::around(input), OutBuffer::around(out));
        // An order to flush or to end is for when all was taken.
        let whole = input.src.len();
        if whole > 0 {
            self.0.run(&mut input, &mut out).map_err(fault)?;
        }
        let read = input.pos();
        let done = read == whole
            && match order {
                Order::Take => true,
                Order::Flush => self.0.flush(&mut out).map_err(fault)? == 0,
                Order::Finish => self.0.finish(&mut out, true).map_err(fault)? == 0,
            };
        Ok(Step { read, written: out.pos(), done })
    }

    pub(super) fn reset(&mut self) -> Result<(), Error> {
        self.0.reinit().map_err(fault)
    }
}

impl std::fmt::Debug for Zstd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Zstd")
    }
}
