use std::{io::Cursor, rc::Rc};

use image::{
    ColorType, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader,
    codecs::{
        jpeg::{JpegDecoder, JpegEncoder},
        png::PngEncoder,
        webp::WebPEncoder,
    },
    metadata::Orientation,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const FORMATS: [ImageFormat; 3] = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP];
const MOST: u64 = 10_000;
/// TIFF, big-endian: one field, the orientation, 6: the right side is up.
const EXIF: &[u8] = &[b'M', b'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 18, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0];

/// A picture that no format makes small.
fn picture(width: u32, height: u32, channels: u8) -> Vec<u8> {
    let mut state = 1_u32;
    let noise = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..width * height * u32::from(channels)).map(noise).collect()
}

fn write(mut encoder: impl ImageEncoder, (width, height): (u32, u32), colour: ColorType, exif: bool) {
    if exif {
        encoder.set_exif_metadata(EXIF.to_vec()).unwrap();
    }
    let pixels = picture(width, height, colour.bytes_per_pixel());
    encoder.write_image(&pixels, width, height, ExtendedColorType::from(colour)).unwrap();
}

fn image(format: ImageFormat, size: (u32, u32), colour: ColorType, exif: bool) -> Vec<u8> {
    let mut data = Vec::new();
    match format {
        ImageFormat::Jpeg => write(JpegEncoder::new_with_quality(&mut data, 95), size, colour, exif),
        ImageFormat::Png => write(PngEncoder::new(&mut data), size, colour, exif),
        _ => write(WebPEncoder::new_lossless(&mut data), size, colour, exif),
    }
    data
}

fn down(data: &[u8]) -> Option<Vec<u8>> {
    scale::down(data, MOST, &mut (1 << 20), &mut Memory::new(1 << 30).reserve())
}

fn size(data: &[u8]) -> (u32, u32) {
    ImageReader::new(Cursor::new(data)).with_guessed_format().unwrap().into_dimensions().unwrap()
}

#[test]
fn an_image_keeps_its_format_shape_and_colours() {
    for format in FORMATS {
        let colours: &[ColorType] = match format {
            ImageFormat::Jpeg => &[ColorType::L8, ColorType::Rgb8],
            ImageFormat::Png => &[ColorType::L8, ColorType::La8, ColorType::Rgb8, ColorType::Rgba8],
            _ => &[ColorType::Rgb8, ColorType::Rgba8],
        };
        for &colour in colours {
            let data = image(format, (300, 150), colour, false);
            let scaled = down(&data).unwrap_or_else(|| panic!("{format:?} {colour:?}"));
            assert_eq!(image::guess_format(&scaled).unwrap(), format);
            assert_eq!(size(&scaled), (141, 70));
            assert_eq!(image::load_from_memory(&scaled).unwrap().color(), colour, "{format:?}");
            assert_eq!(down(&data).unwrap(), scaled, "the same each time");
        }
    }
}

#[test]
fn small_images_stay_as_they_are() {
    for format in FORMATS {
        assert!(down(&image(format, (100, 100), ColorType::Rgb8, false)).is_none());
        assert!(down(&image(format, (101, 100), ColorType::Rgb8, false)).is_some());
    }
}

#[test]
fn the_orientation_is_kept() {
    for format in FORMATS {
        let data = image(format, (300, 150), ColorType::Rgb8, true);
        let scaled = down(&data).unwrap();
        let mut decoder = ImageReader::new(Cursor::new(&scaled)).with_guessed_format().unwrap().into_decoder().unwrap();
        assert_eq!(decoder.orientation().unwrap(), Orientation::Rotate90, "{format:?}");
    }
}

#[test]
fn what_cannot_be_judged_stays_as_it_is() {
    let jpeg = image(ImageFormat::Jpeg, (300, 150), ColorType::Rgb8, false);
    let png = image(ImageFormat::Png, (300, 150), ColorType::Rgb16, false);
    assert!(down(&png).is_none(), "16 bits a colour");
    for format in FORMATS {
        let data = image(format, (300, 150), ColorType::Rgb8, false);
        for end in [data.len() / 2, data.len() - 100] {
            assert!(down(&data[..end]).is_none(), "{format:?} of {} bytes cut after {end}", data.len());
        }
    }
    assert!(down(b"GIF89a and so on").is_none() && down(b"").is_none());
    // Four inks, by the frame header alone.
    let mut inks = jpeg.clone();
    let frame = inks.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    inks[frame + 9] = 4;
    assert!(down(&inks).is_none());
    assert!(JpegDecoder::new(Cursor::new(&jpeg)).is_ok());
}

#[test]
fn what_it_costs_is_bounded() {
    let data = image(ImageFormat::Jpeg, (300, 150), ColorType::Rgb8, false);
    let memory = Memory::new(1 << 30);
    let mut budget = 300 * 150 + 1;
    assert!(scale::down(&data, MOST, &mut budget, &mut memory.reserve()).is_some());
    assert_eq!(budget, 1);
    assert_eq!(scale::down(&data, MOST, &mut budget, &mut memory.reserve()), None, "too many pixels");
    let little = Memory::new(300 * 150 * 3);
    assert_eq!(scale::down(&data, MOST, &mut (1 << 20), &mut little.reserve()), None, "no memory");
    assert_eq!((memory.used(), little.used()), (0, 0));
}

#[test]
fn long_lines_fit_too() {
    let data = image(ImageFormat::Png, (20_001, 1), ColorType::L8, false);
    assert_eq!(size(&down(&data).unwrap()), (10_000, 1));
    let data = image(ImageFormat::Png, (3, 20_000), ColorType::L8, false);
    let (width, height) = size(&down(&data).unwrap());
    assert!(u64::from(width) * u64::from(height) <= MOST && width >= 1, "{width}×{height}");
}

#[test]
fn a_pixel_is_the_mean_of_what_it_covers() {
    assert_eq!(area::scale(&[10, 20, 30, 41], 1, (2, 2), (1, 1)), [25]);
    assert_eq!(area::scale(&[0, 90, 30], 1, (3, 1), (2, 1)), [30, 50]);
    // What is not seen does not show; where nothing is seen, the colours are still there.
    assert_eq!(area::scale(&[200, 255, 0, 0], 2, (2, 1), (1, 1)), [200, 128]);
    assert_eq!(area::scale(&[200, 0, 100, 0], 2, (2, 1), (1, 1)), [150, 0]);
}

proptest! {
    #[test]
    fn any_size_becomes_any_smaller(
        (width, height, new_width, new_height) in (1..30_usize, 1..30_usize).prop_flat_map(|(width, height)| {
            (Just(width), Just(height), 1..=width, 1..=height)
        }),
        seed in any::<u8>(),
    ) {
        let pixels: Vec<u8> = (0..width * height).map(|i| (i as u8).wrapping_mul(seed)).collect();
        let scaled = area::scale(&pixels, 1, (width, height), (new_width, new_height));
        prop_assert_eq!(scaled.len(), new_width * new_height);
        let overlap = |old: usize, new: usize, from: usize, to: usize| {
            let (start, end) = ((old * to).max(new * from), ((old + 1) * to).min((new + 1) * from));
            end.saturating_sub(start) as f64
        };
        for (i, value) in scaled.iter().enumerate() {
            let (x, y) = (i % new_width, i / new_width);
            let sum: f64 = pixels.iter().enumerate().map(|(i, value)| {
                f64::from(*value) * overlap(i % width, x, width, new_width) * overlap(i / width, y, height, new_height)
            }).sum();
            let mean = sum / (width * height) as f64;
            prop_assert!((f64::from(*value) - mean).abs() <= 0.5001, "{} for {}", value, mean);
        }
    }

    #[test]
    fn no_bytes_do_harm(data in proptest::collection::vec(any::<u8>(), 0..400), kind in 0..4_usize, at in 0..600_usize) {
        let mut whole = match FORMATS.get(kind) {
            Some(&format) => image(format, (120, 110), ColorType::Rgb8, true),
            None => Vec::new(),
        };
        let at = at.min(whole.len());
        let end = (at + data.len()).min(whole.len());
        whole.splice(at..end, data);
        let _ = down(&whole);
    }
}

/// `data:` of `data`.
fn url(data: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(data))
}

fn found(endpoint: Endpoint, body: &str) -> Vec<String> {
    let images = find::images(endpoint, body.as_bytes());
    images.iter().map(|image| String::from_utf8(image.digits(body.as_bytes()).into_owned()).unwrap()).collect()
}

#[test]
fn images_are_found_where_they_may_be() {
    use Endpoint::*;
    let none: [&str; 0] = [];
    for (endpoint, body, images) in [
        (Chat, r#"{"messages":[{"content":[{"image_url":{"url":"data:image/png;base64,AAAA"}}]}]}"#, &["AAAA"][..]),
        (
            Chat,
            r#"{"messages":[{"content":[{"image_url":"DATA:;BASE64,AAAA"},{"image_url":{"url":"data:image\/jpeg;base64,B\/BB"}}]}]}"#,
            &["AAAA", "B/BB"],
        ),
        (
            Responses,
            r#"{"input":[{"content":[{"type":"input_image","image_url":"data:image/png;base64,AAAA"}]}]}"#,
            &["AAAA"],
        ),
        (Messages, r#"{"messages":[{"content":[{"source":{"type":"base64","data":"AAAA"}}]}]}"#, &["AAAA"]),
        (Chat, r#"{"messages":[{"content":"data:image/png;base64,AAAA"}]}"#, &none),
        (
            Chat,
            r#"{"messages":[{"content":[{"text":"data:image/png;base64,AAAA"}]}],"image_url":"data:;base64,AAAA"}"#,
            &none,
        ),
        (Chat, r#"{"messages":[{"content":[{"image_url":{"url":"https://a/?data:;base64,AAAA"}}]}]}"#, &none),
        (Chat, r#"{"messages":[{"content":[{"image_url":{"url":"data:image/png,base64"}}]}]}"#, &none),
        (Chat, r#"{"messages":[{"content":[{"image_url":{"url":"data:image/png;base64,AAAA"}}]}]"#, &none),
        (Completions, r#"{"messages":[{"content":[{"image_url":{"url":"data:image/png;base64,AAAA"}}]}]}"#, &none),
    ] {
        assert_eq!(found(endpoint, body), images, "{body}");
    }
}

async fn scaled(body: &Value, memory: &Memory) -> (Bytes, Bytes) {
    let body = Bytes::from(serde_json::to_vec(body).unwrap());
    let mut share = memory.reserve();
    share.grow(body.len()).unwrap();
    let images = Images::new(MOST, memory.clone());
    let edited = images.scale(Endpoint::Chat, body.clone(), &mut share, &Counters::noop()).await;
    assert_eq!(memory.used(), edited.len());
    (body, edited)
}

#[tokio::test]
async fn only_the_images_change() {
    let (large, small) = (
        image(ImageFormat::Png, (300, 150), ColorType::Rgb8, false),
        image(ImageFormat::Png, (9, 9), ColorType::L8, false),
    );
    let part = |url: &str| json!({"type": "image_url", "image_url": {"url": url, "detail": "high"}});
    let content = |urls: [&str; 4]| json!({"model": "m", "messages": [{"role": "user", "content": urls.map(part)}]});
    let (first, second, third) = (url(&large), url(&small), url(b"no image"));
    let (_, edited) = scaled(&content([&first, &second, &third, &first]), &Memory::new(1 << 30)).await;
    let new = url(&down(&large).unwrap());
    let expected = content([&new, &second, &third, &new]);
    assert_eq!(edited, serde_json::to_vec(&expected).unwrap());
}

#[tokio::test]
async fn an_image_that_would_become_larger_stays() {
    // Nothing but one colour: scaled down it is as small as it was, and says more of itself.
    let mut data = Vec::new();
    WebPEncoder::new_lossless(&mut data).write_image(&[7; 101 * 100 * 3], 101, 100, ExtendedColorType::Rgb8).unwrap();
    let body = json!({"messages": [{"content": [{"image_url": {"url": url(&data)}}]}]});
    let (before, after) = scaled(&body, &Memory::new(1 << 30)).await;
    assert_eq!(before, after);
}

#[tokio::test(start_paused = true)]
async fn a_body_waits_for_a_place_only_a_while() {
    let memory = Memory::new(1 << 30);
    let images = Rc::new(Images::new(MOST, memory.clone()));
    let _place = Arc::clone(&images.places).acquire_owned().await.unwrap();
    let data = url(&image(ImageFormat::Png, (300, 150), ColorType::Rgb8, false));
    let body = Bytes::from(json!({"messages": [{"content": [{"image_url": {"url": data}}]}]}).to_string());
    let edited = images.scale(Endpoint::Chat, body.clone(), &mut memory.reserve(), &Counters::noop()).await;
    assert_eq!(edited, body);
}
