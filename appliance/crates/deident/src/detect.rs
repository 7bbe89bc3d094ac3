//! Finding burned-in text in a picture: strokes of one width and contrast, of the size of characters, in a line.
//!
//! The picture is searched at several scales, in both polarities and in both reading directions. At each scale a
//! top-hat transform (Serra 1982) leaves what is narrower than a stroke can be; what stands out is
//! grouped into connected components; components of like height that follow each other on a line are
//! text when they alternate between stroke and gap as letters do. Anatomy has lines and spots too, but they are long,
//! soft or alone. Single letters (side markers) are not looked for.

use crate::report::Region;

/// The widest stroke looked for at one scale, in pixels; wider ones are found at the next coarser scale.
const STROKE: usize = 5;
/// Heights of characters looked for at one scale, in pixels.
const MIN_HEIGHT: usize = 5;
const MAX_HEIGHT: usize = 30;
/// Likeness (see `likeness`) from which a line is taken for text.
const TEXT: i32 = 42;
/// Likeness from which a line is text without a doubt, so that less will do beside it.
const CLEARLY_TEXT: i32 = 54;
/// Likeness that will do beside such a line.
const MAYBE_TEXT: i32 = 5;
/// The picture is halved until its shorter side would fall below this.
const MIN_SIDE: usize = 110;

/// A picture in 256 shades.
#[derive(Debug, Clone)]
pub struct GreyImage {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl GreyImage {
    /// A picture of `width * height` shades, row by row; `None` when the number of shades differs.
    #[must_use]
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Option<Self> {
        (pixels.len() == width * height && width > 0 && height > 0).then_some(Self { width, height, pixels })
    }

    /// Scales values to shades: by their whole range, and where that differs much, also by the range of all but the
    /// most extreme hundredth at each end.
    pub(crate) fn scaled(width: usize, height: usize, values: &[f32]) -> Vec<Self> {
        let step = (values.len() / 20_000).max(1);
        let mut sample: Vec<f32> = values.iter().copied().step_by(step).filter(|v| v.is_finite()).collect();
        if sample.is_empty() || values.len() != width * height {
            return Vec::new();
        }
        sample.sort_by(f32::total_cmp);
        let (low, high) = values
            .iter()
            .filter(|v| v.is_finite())
            .fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
        let at = |part: usize| sample[(sample.len() - 1) * part / 100];
        let (inner_low, inner_high) = (at(1), at(99));
        let scale = |low: f32, high: f32| Self {
            width,
            height,
            pixels: values
                .iter()
                .map(|v| ((v - low) * 255.0 / (high - low)).clamp(0.0, 255.0) as u8)
                .collect(),
        };
        let mut out = Vec::new();
        if high > low {
            out.push(scale(low, high));
        }
        if inner_high > inner_low && (high - low) > 1.25 * (inner_high - inner_low) {
            out.push(scale(inner_low, inner_high));
        }
        out
    }

    fn halved(&self) -> Self {
        let (width, height) = (self.width / 2, self.height / 2);
        let at = |x: usize, y: usize| u32::from(self.pixels[y * self.width + x]);
        let pixels = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x * 2, y * 2)))
            .map(|(x, y)| ((at(x, y) + at(x + 1, y) + at(x, y + 1) + at(x + 1, y + 1)) / 4) as u8)
            .collect();
        Self { width, height, pixels }
    }

    fn transposed(&self) -> Self {
        let pixels = (0..self.width)
            .flat_map(|x| (0..self.height).map(move |y| (x, y)))
            .map(|(x, y)| self.pixels[y * self.width + x])
            .collect();
        Self { width: self.height, height: self.width, pixels }
    }

    fn inverted(&self) -> Self {
        Self { pixels: self.pixels.iter().map(|p| 255 - p).collect(), ..*self }
    }
}

/// Rectangles around the lines of text in a picture.
#[must_use]
pub fn find_text(image: &GreyImage) -> Vec<Region> {
    let mut found = Vec::new();
    let mut level = image.clone();
    let mut scale = 1;
    loop {
        for inverted in [false, true] {
            let view = if inverted { level.inverted() } else { level.clone() };
            found.extend(lines_of(&view, false).into_iter().map(|line| line.region(scale, false, image)));
            found.extend(
                lines_of(&view.transposed(), true).into_iter().map(|line| line.region(scale, true, image)),
            );
        }
        if level.width.min(level.height) / 2 < MIN_SIDE {
            return found;
        }
        level = level.halved();
        scale *= 2;
    }
}

/// A connected component of stroke pixels, or a line of them: its box, and what it is made of.
#[derive(Debug, Clone, Copy)]
struct Blob {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
    area: usize,
    /// Sum of the top-hat over the component.
    strength: usize,
}

impl Blob {
    fn width(&self) -> usize {
        self.right - self.left + 1
    }

    fn height(&self) -> usize {
        self.bottom - self.top + 1
    }

    /// The box in the full picture, a little higher than the letters and longer by one of them at both ends: a letter that touches a
    /// catheter or a rib is one component with it, and does not look like a letter.
    fn region(&self, scale: usize, transposed: bool, image: &GreyImage) -> Region {
        let (along, across) = (self.height() * 5 / 4, (self.height() / 3).max(2));
        let (left, top) = (self.left.saturating_sub(along), self.top.saturating_sub(across));
        let (right, bottom) = (self.right + along + 1, self.bottom + across + 1);
        let (left, top, right, bottom) =
            if transposed { (top, left, bottom, right) } else { (left, top, right, bottom) };
        let x = (left * scale).min(image.width);
        let y = (top * scale).min(image.height);
        let width = (right * scale).min(image.width) - x;
        let height = (bottom * scale).min(image.height) - y;
        let small = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        Region { x: small(x), y: small(y), width: small(width), height: small(height) }
    }
}

/// Sliding minimum (or maximum) over `window` neighbours along rows (van Herk 1992).
fn slide(image: &GreyImage, window: usize, pick: fn(u8, u8) -> u8, edge: u8) -> GreyImage {
    let reach = window / 2;
    let padded = image.width + 2 * reach;
    let mut pixels = Vec::with_capacity(image.pixels.len());
    let mut row = vec![edge; padded];
    let mut forward = vec![edge; padded];
    let mut backward = vec![edge; padded];
    for y in 0..image.height {
        row[reach..reach + image.width]
            .copy_from_slice(&image.pixels[y * image.width..(y + 1) * image.width]);
        for x in 0..padded {
            forward[x] = if x % window == 0 { row[x] } else { pick(forward[x - 1], row[x]) };
        }
        for x in (0..padded).rev() {
            let last = x + 1 == padded || (x + 1) % window == 0;
            backward[x] = if last { row[x] } else { pick(backward[x + 1], row[x]) };
        }
        pixels.extend((0..image.width).map(|x| pick(backward[x], forward[x + window - 1])));
    }
    GreyImage { width: image.width, height: image.height, pixels }
}

fn min_max(image: &GreyImage, window: usize, pick: fn(u8, u8) -> u8, edge: u8) -> GreyImage {
    let across = slide(image, window, pick, edge);
    slide(&across.transposed(), window, pick, edge).transposed()
}

/// What is brighter than its surroundings and narrower than `STROKE`, by how much.
fn top_hat(image: &GreyImage) -> GreyImage {
    let window = STROKE + 2;
    let eroded = min_max(image, window, u8::min, 255);
    let opened = min_max(&eroded, window, u8::max, 0);
    let pixels = image.pixels.iter().zip(&opened.pixels).map(|(a, b)| a.saturating_sub(*b)).collect();
    GreyImage { width: image.width, height: image.height, pixels }
}

/// The contrast from which on a pixel counts as stroke: well above the picture's own grain.
fn threshold(hat: &GreyImage) -> u8 {
    let mut histogram = [0usize; 256];
    hat.pixels.iter().for_each(|&p| histogram[usize::from(p)] += 1);
    let quarter = hat.pixels.len() / 4 * 3;
    let mut seen = 0;
    let typical = histogram
        .iter()
        .position(|count| {
            seen += count;
            seen >= quarter
        })
        .unwrap_or(0);
    u8::try_from((typical * 3).clamp(24, 80)).unwrap_or(80)
}

fn components(hat: &GreyImage, threshold: u8) -> Vec<Blob> {
    let (width, height) = (hat.width, hat.height);
    let mut seen = vec![false; hat.pixels.len()];
    let mut stack = Vec::new();
    let mut blobs = Vec::new();
    for start in 0..hat.pixels.len() {
        if seen[start] || hat.pixels[start] < threshold {
            continue;
        }
        let (x, y) = (start % width, start / width);
        let mut blob = Blob { left: x, top: y, right: x, bottom: y, area: 0, strength: 0 };
        seen[start] = true;
        stack.push(start);
        while let Some(at) = stack.pop() {
            let (x, y) = (at % width, at / width);
            blob.left = blob.left.min(x);
            blob.right = blob.right.max(x);
            blob.top = blob.top.min(y);
            blob.bottom = blob.bottom.max(y);
            blob.area += 1;
            blob.strength += usize::from(hat.pixels[at]);
            for ny in y.saturating_sub(1)..=(y + 1).min(height - 1) {
                for nx in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                    let next = ny * width + nx;
                    if !seen[next] && hat.pixels[next] >= threshold {
                        seen[next] = true;
                        stack.push(next);
                    }
                }
            }
        }
        blobs.push(blob);
    }
    blobs
}

fn is_character(blob: &Blob) -> bool {
    let (width, height) = (blob.width(), blob.height());
    (MIN_HEIGHT..=MAX_HEIGHT).contains(&height)
        && width <= height * 8
        && height <= width * 12
        && blob.area * 8 >= width * height
        && blob.area >= 5
}

/// Lines of text, reading from left to right.
fn lines_of(image: &GreyImage, transposed: bool) -> Vec<Blob> {
    let hat = top_hat(image);
    let strong = threshold(&hat);
    let mut found = lines_at(image, &hat, strong, transposed);
    // Faint text, where the strong strokes of other things would hide it.
    let faint = (strong / 2).max(14);
    found.extend(lines_at(image, &hat, faint, transposed));
    found
}

fn lines_at(image: &GreyImage, hat: &GreyImage, threshold: u8, transposed: bool) -> Vec<Blob> {
    let mut characters: Vec<Blob> = components(hat, threshold).into_iter().filter(is_character).collect();
    characters.sort_by_key(|blob| (blob.left, blob.top));
    let mut lines: Vec<Vec<Blob>> = Vec::new();
    for blob in characters {
        let home = lines
            .iter_mut()
            .filter(|line| follows(line, &blob))
            .min_by_key(|line| line.last().map_or(usize::MAX, |last| blob.left.saturating_sub(last.right)));
        match home {
            Some(line) => line.push(blob),
            None => lines.push(vec![blob]),
        }
    }
    let candidates: Vec<(Blob, Traits, i32)> = lines
        .iter()
        .filter_map(|line| {
            let whole = joined(line);
            let traits = measure(image, hat, threshold, line, &whole);
            likeness(&traits, transposed).map(|likeness| (whole, traits, likeness))
        })
        .collect();
    let (mut accepted, mut doubtful): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|(_, _, likeness)| *likeness >= TEXT);
    // Text comes in blocks: beside a line that stands out as text, less will do.
    let mut next = 0;
    while next < accepted.len() {
        let (beside, height) = (accepted[next].0, accepted[next].1.height);
        if accepted[next].2 < CLEARLY_TEXT {
            next += 1;
            continue;
        }
        let (near, rest): (Vec<_>, Vec<_>) = doubtful.into_iter().partition(|(blob, traits, likeness)| {
            let like = traits.height * 10 <= height * 17 && height * 10 <= traits.height * 17;
            like && is_near(blob, &beside, height) && *likeness >= MAYBE_TEXT
        });
        accepted.extend(near);
        doubtful = rest;
        next += 1;
    }
    accepted
        .into_iter()
        .map(
            |(line, _, likeness)| {
                if likeness >= CLEARLY_TEXT { extended(hat, threshold, line) } else { line }
            },
        )
        .collect()
}

fn is_near(a: &Blob, b: &Blob, height: usize) -> bool {
    let apart = |low: usize, high: usize, other_low: usize, other_high: usize| {
        low.saturating_sub(other_high).max(other_low.saturating_sub(high))
    };
    apart(a.top, a.bottom, b.top, b.bottom) <= height * 2
        && apart(a.left, a.right, b.left, b.right) <= height * 3
}

/// Whether a component continues a line: next to one of its last ones, of like height, on the same level.
fn follows(line: &[Blob], blob: &Blob) -> bool {
    line.iter().rev().take(3).any(|last| {
        let (a, b) = (last.height(), blob.height());
        let tall = a.max(b);
        let gap = blob.left.saturating_sub(last.right);
        let overlap = (last.bottom.min(blob.bottom) + 1).saturating_sub(last.top.max(blob.top));
        tall * 10 <= a.min(b) * 22 && gap * 10 <= tall * 14 && overlap * 2 >= a.min(b)
    })
}

fn joined(line: &[Blob]) -> Blob {
    line.iter().skip(1).fold(line[0], |a, b| Blob {
        left: a.left.min(b.left),
        top: a.top.min(b.top),
        right: a.right.max(b.right),
        bottom: a.bottom.max(b.bottom),
        area: a.area + b.area,
        strength: a.strength + b.strength,
    })
}

/// How far each stroke of a row rises (and falls) within three pixels, and how high it gets.
fn edges(row: &[u8], threshold: u8) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut x = 0;
    while x < row.len() {
        if row[x] < threshold {
            x += 1;
            continue;
        }
        let start = x;
        while x < row.len() && row[x] >= threshold {
            x += 1;
        }
        let peak = usize::from(row[start..x].iter().copied().max().unwrap_or(0));
        let within = |from: usize, to: usize| row[from.min(row.len())..to.min(row.len())].iter().copied();
        let low = |values: &mut dyn Iterator<Item = u8>| usize::from(values.min().unwrap_or(0));
        let high = |values: &mut dyn Iterator<Item = u8>| usize::from(values.max().unwrap_or(0));
        if start >= 2 {
            let rise = high(&mut within(start, start + 2)).saturating_sub(low(&mut within(start - 2, start)));
            out.push((rise, peak));
        }
        if x + 2 <= row.len() {
            let fall = high(&mut within(x.saturating_sub(2), x)).saturating_sub(low(&mut within(x, x + 2)));
            out.push((fall, peak));
        }
    }
    out
}

/// A line together with what follows at either end and may be more of it, where the background hides the letters:
/// weaker strokes at the same level, up to a gap of one letter and up to five letter heights on.
fn extended(hat: &GreyImage, threshold: u8, line: Blob) -> Blob {
    let weak = (threshold / 2).max(10);
    let height = line.height();
    let reach = height * 5;
    let inked = |x: usize| {
        let strokes = (line.top..=line.bottom).filter(|y| hat.pixels[y * hat.width + x] >= weak).count();
        strokes > 0
    };
    let gap = height;
    let mut left = line.left;
    let first = line.left.saturating_sub(reach);
    for x in (first..line.left).rev() {
        if inked(x) {
            left = x;
        } else if left - x > gap {
            break;
        }
    }
    let mut right = line.right;
    for x in line.right + 1..(line.right + reach).min(hat.width) {
        if inked(x) {
            right = x;
        } else if x - right > gap {
            break;
        }
    }
    Blob { left, right, ..line }
}

fn brightest(image: &GreyImage, blob: &Blob) -> usize {
    let rows = (blob.top..=blob.bottom)
        .map(|y| &image.pixels[y * image.width + blob.left..=y * image.width + blob.right]);
    usize::from(rows.flatten().copied().max().unwrap_or(0))
}

fn median(mut values: Vec<usize>) -> usize {
    values.sort_unstable();
    values[values.len() / 2]
}

/// What a line is judged by.
#[derive(Debug, Clone, Copy)]
struct Traits {
    letters: usize,
    /// Median height of the letters, in pixels.
    height: usize,
    /// Height of the whole line in tenths of that.
    line_height_10: usize,
    /// Width in tenths of the height.
    width_10: usize,
    /// Strokes crossed by a row through the middle, in tenths.
    strokes_10: usize,
    /// The same for a width of one letter height.
    density_10: usize,
    /// Percentage of ink in the middle rows.
    fill: usize,
    /// How much of a stroke's contrast is reached within a pixel or two, in percent.
    sharpness: usize,
    /// Percentage of letters of about the median contrast.
    alike: usize,
    /// Percentage of letters that stand on, or hang from, the common level.
    level: usize,
    /// Median contrast of the letters.
    contrast: usize,
    /// Percentage of letters whose brightest pixel is about as bright as that of the others: ink has one shade.
    even: usize,
}

fn measure(image: &GreyImage, hat: &GreyImage, threshold: u8, line: &[Blob], whole: &Blob) -> Traits {
    let height = median(line.iter().map(Blob::height).collect());
    let width = whole.width();
    let rows = whole.top + whole.height() / 5..=whole.bottom - whole.height() / 5;
    let row_count = rows.clone().count().max(1);
    let (mut strokes, mut ink, mut steps, mut peaks) = (0, 0, 0, 0);
    for y in rows {
        let row = &hat.pixels[y * hat.width + whole.left..=y * hat.width + whole.right];
        strokes += row.windows(2).filter(|pair| pair[0] < threshold && pair[1] >= threshold).count()
            + usize::from(row[0] >= threshold);
        ink += row.iter().filter(|&&p| p >= threshold).count();
        for (step, peak) in edges(row, threshold) {
            steps += step;
            peaks += peak;
        }
    }
    let strokes_10 = strokes * 10 / row_count;
    let strengths: Vec<usize> = line.iter().map(|blob| blob.strength / blob.area).collect();
    let contrast = median(strengths.clone());
    let alike = strengths.iter().filter(|&&s| s * 10 >= contrast * 6 && s * 10 <= contrast * 16).count();
    let base = median(line.iter().map(|blob| blob.bottom).collect());
    let top = median(line.iter().map(|blob| blob.top).collect());
    let tolerance = (height / 6).max(1);
    let level = line
        .iter()
        .filter(|blob| blob.bottom.abs_diff(base) <= tolerance || blob.top.abs_diff(top) <= tolerance)
        .count();
    let peaks_of: Vec<usize> = line.iter().map(|blob| brightest(image, blob)).collect();
    let shade = median(peaks_of.clone());
    let even = peaks_of.iter().filter(|peak| peak.abs_diff(shade) <= 14).count();
    Traits {
        even: even * 100 / line.len(),
        letters: line.len(),
        height,
        line_height_10: whole.height() * 10 / height,
        width_10: width * 10 / height,
        strokes_10,
        density_10: strokes_10 * height / width,
        fill: ink * 100 / (row_count * width),
        sharpness: steps * 100 / peaks.max(1),
        alike: alike * 100 / line.len(),
        level: level * 100 / line.len(),
        contrast,
    }
}

/// How much a line looks like text, 0 or below for anatomy as a rule; `None` where it cannot be text.
///
/// Weighed on pictures without text (chest X-rays, CT, MR) and with text drawn in at several sizes, shades and
/// backgrounds. Sharpness tells most: drawn strokes rise within a pixel or two (nine in ten lines of text above
/// 86 %), ribs, vessels and folds more slowly (nine in ten below 87 %); then length, then regularity.
fn likeness(line: &Traits, transposed: bool) -> Option<i32> {
    let possible = line.line_height_10 <= 22
        && line.width_10 >= 15
        && line.strokes_10 >= 30
        && (8..=60).contains(&line.density_10)
        && (12..=80).contains(&line.fill)
        && line.sharpness >= 66;
    let number = |value: usize| i32::try_from(value).unwrap_or(i32::MAX);
    possible.then(|| {
        (number(line.sharpness) - 84) * 3
            + number(line.letters.min(12)) * 2
            + number(line.strokes_10.min(150)) / 10
            + (number(line.level) - 80) / 5
            + (number(line.alike) - 90) / 5
            + (number(line.even) - 66) / 5
            + (number(line.contrast.min(100)) - 60) / 8
            // Upright text is rare, and ribs stand upon each other.
            - if transposed { 14 } else { 0 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture with soft blobs and stripes, as anatomy has, and no text.
    fn anatomy(width: usize, height: usize) -> Vec<u8> {
        (0..height)
            .flat_map(|y| (0..width).map(move |x| (x as f32, y as f32)))
            .map(|(x, y)| {
                let lung = 60.0 * (-((x - 70.0).powi(2) + (y - 100.0).powi(2)) / 2500.0).exp();
                let ribs = 25.0 * (y / 9.0 + x / 40.0).sin();
                (110.0 - lung + ribs) as u8
            })
            .collect()
    }

    /// Letters of a blocky font of 5 by 7 pixels, drawn `scale` times as large.
    fn write(pixels: &mut [u8], width: usize, left: usize, top: usize, scale: usize, shade: u8) {
        const LETTERS: [[u8; 7]; 6] = [
            [0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001], // A
            [0b11110, 0b10001, 0b10001, 0b11110, 0b10001, 0b10001, 0b11110], // B
            [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111], // E
            [0b10001, 0b11001, 0b10101, 0b10101, 0b10011, 0b10001, 0b10001], // N
            [0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001], // R
            [0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100], // T
        ];
        for (n, letter) in LETTERS.iter().enumerate() {
            for (y, row) in letter.iter().enumerate() {
                for x in (0..5).filter(|x| row >> (4 - x) & 1 == 1) {
                    for (dy, dx) in (0..scale).flat_map(|dy| (0..scale).map(move |dx| (dy, dx))) {
                        pixels[(top + y * scale + dy) * width + left + (n * 6 + x) * scale + dx] = shade;
                    }
                }
            }
        }
    }

    fn covers(regions: &[Region], x: usize, y: usize) -> bool {
        let (x, y) = (x as u32, y as u32);
        regions.iter().any(|r| r.x <= x && x < r.x + r.width && r.y <= y && y < r.y + r.height)
    }

    #[test]
    fn a_picture_without_text_stays_whole() {
        let image = GreyImage::new(224, 224, anatomy(224, 224)).unwrap();
        assert_eq!(find_text(&image), []);
        assert_eq!(find_text(&GreyImage::new(64, 64, vec![7; 4096]).unwrap()), []);
        assert_eq!(find_text(&GreyImage::new(1, 1, vec![7]).unwrap()), []);
    }

    #[test]
    fn light_dark_large_and_upright_text_is_found() {
        for (scale, shade) in [(1, 255), (2, 255), (2, 0), (4, 255)] {
            let mut pixels = anatomy(224, 224);
            write(&mut pixels, 224, 30, 150, scale, shade);
            let image = GreyImage::new(224, 224, pixels).unwrap();
            for view in [image.clone(), image.inverted()] {
                let found = find_text(&view);
                assert!(
                    covers(&found, 30, 152) && covers(&found, 30 + 33 * scale, 152),
                    "{scale} {shade} {found:?}"
                );
            }
            let found = find_text(&image.transposed());
            assert!(covers(&found, 152, 30 + 17 * scale), "upright {scale} {shade} {found:?}");
        }
    }

    #[test]
    fn text_shows_although_one_hot_pixel_squeezes_the_range() {
        let mut values: Vec<f32> = anatomy(224, 224).iter().map(|&v| f32::from(v)).collect();
        let mut shades = anatomy(224, 224);
        write(&mut shades, 224, 30, 150, 2, 200);
        values.iter_mut().zip(&shades).for_each(|(v, s)| *v = f32::from(*s));
        values[5] = 60_000.0;
        let found: Vec<Region> = GreyImage::scaled(224, 224, &values).iter().flat_map(find_text).collect();
        assert!(covers(&found, 60, 155), "{found:?}");
    }
}
