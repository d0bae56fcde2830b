//! One content coding, decoded a piece at a time (RFC 9110 §8.4.1; RFC 1950–1952, 7932, 8878).
//!
//! The codecs are driven directly: what they hold is then known at each step. A window is as large as the sender says
//! and costs him nothing, so it counts like the body itself, and those beyond what the RFCs ask of a decoder are
//! refused.

use std::{cell::Cell, fmt, rc::Rc};

use brotli_decompressor::{
    Allocator, BrotliDecompressStream, BrotliResult, BrotliState, SliceWrapper as _, StandardAlloc,
};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// A content coding that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// zlib's format, or its bare content, which many senders mean by the name.
    Deflate,
    Brotli,
    Zstd,
}

/// Why coded bytes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// They are not of this coding.
    Broken,
    /// More came after its end.
    Trailing,
    /// The sender asks for more memory than any decoder has to give.
    Window,
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    pub(super) read: usize,
    pub(super) made: usize,
}

/// Decodes one coding.
pub(super) struct Codec {
    state: State,
    part: Part,
}

/// Where in the coded bytes it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Before the first byte.
    Start,
    Inside,
    /// A gzip member or a zstd frame has ended; another may follow.
    Between,
    /// Nothing may follow.
    End,
}

enum State {
    Gzip(Decompress),
    /// Which of its two forms it has is seen in the first two bytes.
    Deflate(Form),
    Brotli(Box<Brotli>),
    Zstd(DCtx<'static>),
}

enum Form {
    Unknown(Option<u8>),
    Known(Decompress),
}

struct Brotli {
    state: BrotliState<Counting, Counting, Counting>,
    held: Rc<Cell<usize>>,
}

/// The standard allocator, counted.
#[derive(Clone, Default)]
struct Counting(Rc<Cell<usize>>);

/// As RFC 9659 has it: 8 MiB are enough for every zstd body.
const ZSTD_WINDOW_LOG: u32 = 23;
const WINDOW_BITS: u8 = 15;
/// About what inflate holds: its window and its tables.
const INFLATE: usize = 48 * 1024;

impl Coding {
    /// By its name in `Content-Encoding`.
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
            () if is("deflate") => Some(Self::Deflate),
            () if is("br") => Some(Self::Brotli),
            () if is("zstd") => Some(Self::Zstd),
            () => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

impl Codec {
    pub(super) fn new(coding: Coding) -> Self {
        let state = match coding {
            Coding::Gzip => State::Gzip(Decompress::new_gzip(WINDOW_BITS)),
            Coding::Deflate => State::Deflate(Form::Unknown(None)),
            Coding::Brotli => State::Brotli(Box::default()),
            Coding::Zstd => State::Zstd(zstd()),
        };
        Self { state, part: Part::Start }
    }

    /// Reads from `input` and writes to `output` as far as both reach. What fits may be more than `input` alone makes:
    /// with a full `output` there can be more to come.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Fault> {
        match self.part {
            Part::End if input.is_empty() => return Ok(Step::default()),
            Part::End => return Err(Fault::Trailing),
            Part::Start | Part::Between if input.is_empty() => return Ok(Step::default()),
            Part::Start | Part::Between | Part::Inside => {}
        }
        let again = self.part == Part::Between;
        let (step, part) = match &mut self.state {
            State::Gzip(inflate) => {
                if again {
                    inflate.reset(true);
                }
                inflate_step(inflate, input, output, Part::Between)
            }
            State::Deflate(form) => form.step(input, output),
            State::Brotli(brotli) => brotli.step(input, output),
            State::Zstd(context) => zstd_step(context, input, output),
        }
        // What follows a whole member and is not another was no part of it.
        .map_err(|fault| if again && fault == Fault::Broken { Fault::Trailing } else { fault })?;
        self.part = part;
        Ok(step)
    }

    /// Whether the coded bytes may end here.
    pub(super) fn may_end(&self) -> bool {
        self.part != Part::Inside
    }

    /// Bytes it holds.
    pub(super) fn held(&self) -> usize {
        match &self.state {
            State::Gzip(_) | State::Deflate(_) => INFLATE,
            State::Brotli(brotli) => size_of::<Brotli>() + brotli.held.get(),
            State::Zstd(context) => context.sizeof(),
        }
    }
}

fn inflate_step(inflate: &mut Decompress, input: &[u8], output: &mut [u8], after: Part) -> Result<(Step, Part), Fault> {
    let (read, made) = (inflate.total_in(), inflate.total_out());
    let status = inflate.decompress(input, output, FlushDecompress::None).map_err(|_| Fault::Broken)?;
    let since = |now: u64, then: u64| usize::try_from(now - then).unwrap_or(usize::MAX);
    let step = Step { read: since(inflate.total_in(), read), made: since(inflate.total_out(), made) };
    Ok((step, if status == Status::StreamEnd { after } else { Part::Inside }))
}

impl Form {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(Step, Part), Fault> {
        let seen = match self {
            Self::Known(inflate) => return inflate_step(inflate, input, output, Part::End),
            Self::Unknown(seen) => *seen,
        };
        let (first, rest) = match (seen, input) {
            (Some(first), rest) => (first, rest),
            (None, [first, rest @ ..]) => (*first, rest),
            (None, []) => return Ok((Step::default(), Part::Start)),
        };
        let taken = input.len() - rest.len();
        let Some(second) = rest.first() else {
            *self = Self::Unknown(Some(first));
            return Ok((Step { read: taken, made: 0 }, Part::Inside));
        };
        // A bare block never begins like this: it would be a stored one with a bit of its padding set.
        let zlib = first & 0x0f == 8 && first >> 4 <= 7 && u16::from_be_bytes([first, *second]) % 31 == 0;
        let mut inflate = Decompress::new_with_window_bits(zlib, WINDOW_BITS);
        // One byte neither ends a stream nor makes anything.
        inflate_step(&mut inflate, &[first], &mut [], Part::End)?;
        let (step, part) = inflate_step(&mut inflate, rest, output, Part::End)?;
        *self = Self::Known(inflate);
        Ok((Step { read: taken + step.read, ..step }, part))
    }
}

impl Default for Brotli {
    fn default() -> Self {
        let alloc = Counting::default();
        let held = Rc::clone(&alloc.0);
        // Strict: no windows above 16 MiB, which RFC 7932 does not know.
        Self { state: BrotliState::new_strict(alloc.clone(), alloc.clone(), alloc), held }
    }
}

impl Brotli {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(Step, Part), Fault> {
        let (mut left, mut read, mut room, mut made, mut total) = (input.len(), 0, output.len(), 0, 0);
        let state = &mut self.state;
        let result =
            BrotliDecompressStream(&mut left, &mut read, input, &mut room, &mut made, output, &mut total, state);
        let part = match result {
            BrotliResult::ResultSuccess => Part::End,
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => Part::Inside,
            BrotliResult::ResultFailure => return Err(Fault::Broken),
        };
        Ok((Step { read, made }, part))
    }
}

fn zstd() -> DCtx<'static> {
    let mut context = DCtx::create();
    // It fails for a value out of bounds alone; the default is larger.
    let set = context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG));
    debug_assert!(set.is_ok(), "a window that zstd knows");
    context
}

fn zstd_step(context: &mut DCtx<'_>, input: &[u8], output: &mut [u8]) -> Result<(Step, Part), Fault> {
    let mut from = InBuffer::around(input);
    let mut to = OutBuffer::around(output);
    let hint = context.decompress_stream(&mut to, &mut from).map_err(|code| {
        // Named in zstd_errors.h; the crate has no name for it without its bindings.
        if zstd::zstd_safe::get_error_name(code).contains("too much memory") { Fault::Window } else { Fault::Broken }
    })?;
    let step = Step { read: from.pos(), made: to.pos() };
    Ok((step, if hint == 0 { Part::Between } else { Part::Inside }))
}

impl<T: Clone + Default> Allocator<T> for Counting {
    type AllocatedMemory = <StandardAlloc as Allocator<T>>::AllocatedMemory;

    fn alloc_cell(&mut self, len: usize) -> Self::AllocatedMemory {
        self.0.set(self.0.get() + len * size_of::<T>());
        StandardAlloc::default().alloc_cell(len)
    }

    fn free_cell(&mut self, data: Self::AllocatedMemory) {
        self.0.set(self.0.get().saturating_sub(size_of_val(data.slice())));
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec").field("part", &self.part).finish_non_exhaustive()
    }
}
