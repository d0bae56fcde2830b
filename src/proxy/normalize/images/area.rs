//! Scaling down by area: each new pixel is the mean of what it covers, counted exactly in whole numbers, so the same
//! image becomes the same bytes everywhere. One row of sums is all it needs beside the two images.

/// Width and height.
pub(super) type Size = (usize, usize);

/// `pixels` of `channels` bytes each, the last of two or four the opacity, from one size to another that is not larger
/// in either direction.
pub(super) fn scale(pixels: &[u8], channels: usize, from: Size, to: Size) -> Vec<u8> {
    let opacity = channels == 2 || channels == 4;
    let area = (from.0 * from.1) as u64;
    let mut scaled = Vec::with_capacity(to.0 * to.1 * channels);
    // Of the row of `pixels` at hand, and of the new row so far.
    let (mut row, mut sums) = (vec![0_u64; to.0 * channels], vec![0_u64; to.0 * channels]);
    let mut spread = Spread::new(from.1, to.1);
    for line in pixels.chunks_exact(from.0 * channels) {
        row.fill(0);
        across(line, channels, opacity, from.0, to.0, &mut row);
        let (first, second) = spread.next();
        add(&mut sums, &row, first);
        if spread.is_full() {
            finish(&sums, channels, opacity, area, &mut scaled);
            sums.fill(0);
            add(&mut sums, &row, second);
        }
    }
    scaled
}

/// How cells of one grid fall into those of a coarser one over the same length, measured so that both are whole.
struct Spread {
    /// Sizes of an old and of a new cell.
    old: u64,
    new: u64,
    /// What is free in the new cell at hand.
    left: u64,
    full: bool,
}

impl Spread {
    fn new(from: usize, to: usize) -> Self {
        Self { old: to as u64, new: from as u64, left: from as u64, full: false }
    }

    /// How much of the next old cell lies in the new cell at hand, and in the one behind it.
    fn next(&mut self) -> (u64, u64) {
        let first = self.old.min(self.left);
        let second = self.old - first;
        self.left -= first;
        self.full = self.left == 0;
        if self.full {
            self.left = self.new - second;
        }
        (first, second)
    }

    /// Whether the last old cell was the end of a new one.
    fn is_full(&self) -> bool {
        self.full
    }
}

fn add(sums: &mut [u64], row: &[u64], weight: u64) {
    if weight > 0 {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * weight);
    }
}

/// One row, in its own direction.
fn across(line: &[u8], channels: usize, opacity: bool, from: usize, to: usize, row: &mut [u64]) {
    let mut spread = Spread::new(from, to);
    let mut at = 0;
    for pixel in line.chunks_exact(channels) {
        let (first, second) = spread.next();
        let values = weighed(pixel, opacity);
        let sums = &mut row[at..];
        sums.iter_mut().zip(&values[..channels]).for_each(|(sum, value)| *sum += value * first);
        if spread.is_full() {
            at += channels;
            if second > 0 {
                let sums = &mut row[at..];
                sums.iter_mut().zip(&values[..channels]).for_each(|(sum, value)| *sum += value * second);
            }
        }
    }
}

/// A pixel counts by its opacity, and by very little where it has none: what hides behind nothing must not show, and is
/// still there for readers that look at the colours alone.
fn weighed(pixel: &[u8], opacity: bool) -> [u64; 4] {
    let mut values = [0; 4];
    if !opacity {
        values.iter_mut().zip(pixel).for_each(|(value, byte)| *value = u64::from(*byte));
        return values;
    }
    let last = pixel.len() - 1;
    let weight = u64::from(pixel[last]) * 255 + 1;
    values.iter_mut().zip(&pixel[..last]).for_each(|(value, byte)| *value = u64::from(*byte) * weight);
    values[last] = weight;
    values
}

fn finish(sums: &[u64], channels: usize, opacity: bool, area: u64, scaled: &mut Vec<u8>) {
    let mean = |sum: u64, weight: u64| u8::try_from((sum + weight / 2) / weight).unwrap_or(u8::MAX);
    for pixel in sums.chunks_exact(channels) {
        if !opacity {
            scaled.extend(pixel.iter().map(|sum| mean(*sum, area)));
            continue;
        }
        let (weight, colours) = (pixel[channels - 1], &pixel[..channels - 1]);
        scaled.extend(colours.iter().map(|sum| mean(*sum, weight)));
        scaled.push(mean(weight - area, area * 255));
    }
}
