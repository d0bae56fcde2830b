//! One image, scaled down.

use std::io::Cursor;

use image::{
    ColorType, ImageDecoder, ImageEncoder, ImageFormat, Limits,
    codecs::{
        jpeg::{JpegDecoder, JpegEncoder},
        png::{CompressionType, FilterType, PngDecoder, PngEncoder},
        webp::{WebPDecoder, WebPEncoder},
    },
    guess_format,
};

use super::area;
use crate::proxy::memory::Reservation;

/// Nobody sees the loss, and models less.
const QUALITY: u8 = 90;
/// Of a JPEG. Its decoder makes up what is missing of one that is cut, where engines refuse it.
const END: &[u8] = &[0xff, 0xd9];
/// Longest side.
const LONGEST: u32 = 32 * 1024;
/// What decoders may allocate beside the pixels, for each of them: a progressive JPEG keeps its coefficients.
const BESIDE: u64 = 8;

/// `data` with no more than `most` pixels, in its own format. `None` = it has no more, or is better left alone. What is
/// decoded is taken from `budget`, what is allocated is reserved in `share` before.
pub(super) fn down(data: &[u8], most: u64, budget: &mut u64, share: &mut Reservation) -> Option<Vec<u8>> {
    let format = guess_format(data).ok()?;
    let mut decoder = open(format, data)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels <= most {
        return None;
    }
    *budget = budget.checked_sub(pixels)?;
    let colour = decoder.color_type();
    if !matches!(colour, ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8) {
        return None;
    }
    let (new_width, new_height) = fit(width, height, most);
    // The image, its decoder, and what is made of it; with the old and the new text of it that are there already.
    let needed = decoder.total_bytes() + pixels * BESIDE + most * 8 + 4 * data.len() as u64;
    share.grow(usize::try_from(needed).ok()?).ok()?;
    decoder.set_limits(limits(needed)).ok()?;

    let (profile, exif) = (decoder.icc_profile().ok()?, decoder.exif_metadata().ok()?);
    let mut whole = vec![0; usize::try_from(decoder.total_bytes()).ok()?];
    decoder.read_image(&mut whole).ok()?;
    let size = |width: u32, height: u32| (width as usize, height as usize);
    let channels = usize::from(colour.channel_count());
    let scaled = area::scale(&whole, channels, size(width, height), size(new_width, new_height));
    drop(whole);

    let mut encoded = Vec::new();
    let image = Scaled { pixels: &scaled, width: new_width, height: new_height, colour, profile, exif };
    match format {
        ImageFormat::Jpeg => image.write(JpegEncoder::new_with_quality(&mut encoded, QUALITY)),
        ImageFormat::Png => {
            let (level, filter) = (CompressionType::Default, FilterType::Adaptive);
            image.write(PngEncoder::new_with_quality(&mut encoded, level, filter))
        }
        ImageFormat::WebP => image.write(WebPEncoder::new_lossless(&mut encoded)),
        _ => None,
    }?;
    Some(encoded)
}

fn limits(allocated: u64) -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(LONGEST);
    limits.max_image_height = Some(LONGEST);
    limits.max_alloc = Some(allocated);
    limits
}

/// A decoder for one still image of a kind that can be written again.
fn open(format: ImageFormat, data: &[u8]) -> Option<Box<dyn ImageDecoder + '_>> {
    let from = Cursor::new(data);
    // Metadata may be packed too: they are bounded like all else.
    let first = limits(4 * data.len() as u64 + (1 << 20));
    let decoder: Box<dyn ImageDecoder + '_> = match format {
        ImageFormat::Jpeg if data.ends_with(END) && components(data)? != 4 => Box::new(JpegDecoder::new(from).ok()?),
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(from, first).ok()?;
            if decoder.is_apng().ok()? {
                return None;
            }
            Box::new(decoder)
        }
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(from).ok()?;
            if decoder.has_animation() {
                return None;
            }
            Box::new(decoder)
        }
        _ => return None,
    };
    let (width, height) = decoder.dimensions();
    (width.max(height) <= LONGEST).then_some(decoder)
}

/// How many colours a JPEG has, by its frame header: four are printer's inks, which every reader takes in its own way.
fn components(data: &[u8]) -> Option<u8> {
    let mut at = 2;
    loop {
        let [0xff, marker, high, low] = *data.get(at..)?.first_chunk()? else { return None };
        if marker == 0xff {
            at += 1;
            continue;
        }
        // SOF0 to SOF15, but for DHT, JPG and DAC.
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            return data.get(at + 9).copied();
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
}

/// The largest size of the same shape with no more than `most` pixels.
fn fit(width: u32, height: u32, most: u64) -> (u32, u32) {
    let ratio = (most as f64 / (f64::from(width) * f64::from(height))).sqrt();
    let side = |side: u32| ((f64::from(side) * ratio) as u32).clamp(1, side);
    let (new_width, new_height) = (side(width), side(height));
    // A line of pixels: one side cannot become shorter.
    let rest = |other: u32| u32::try_from(most / u64::from(other)).unwrap_or(u32::MAX).max(1);
    (new_width.min(rest(new_height)), new_height.min(rest(new_width)))
}

/// What is to be written.
struct Scaled<'a> {
    pixels: &'a [u8],
    width: u32,
    height: u32,
    colour: ColorType,
    profile: Option<Vec<u8>>,
    /// Whole: it says which side is up.
    exif: Option<Vec<u8>>,
}

impl Scaled<'_> {
    fn write(self, mut encoder: impl ImageEncoder) -> Option<()> {
        if let Some(profile) = self.profile {
            encoder.set_icc_profile(profile).ok()?;
        }
        if let Some(exif) = self.exif {
            encoder.set_exif_metadata(exif).ok()?;
        }
        encoder.write_image(self.pixels, self.width, self.height, self.colour.into()).ok()
    }
}
