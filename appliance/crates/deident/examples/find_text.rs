//! Prints the rectangles in which burned-in text is found, one line per picture: for tuning, and to see why a
//! picture was blanked. Pictures are binary PGM files of 8 bits.

use medinet_deident::{GreyImage, find_text};

fn read_pgm(path: &str) -> Option<GreyImage> {
    let bytes = std::fs::read(path).ok()?;
    let mut at = 0;
    let mut fields = Vec::new();
    while fields.len() < 4 {
        let length = bytes.get(at..)?.iter().take_while(|c| !c.is_ascii_whitespace()).count();
        fields.push(std::str::from_utf8(&bytes[at..at + length]).ok()?);
        at += length + 1;
    }
    if fields[0] != "P5" {
        return None;
    }
    GreyImage::new(fields[1].parse().ok()?, fields[2].parse().ok()?, bytes[at..].to_vec())
}

#[allow(clippy::print_stdout)]
fn main() {
    for path in std::env::args().skip(1) {
        let Some(image) = read_pgm(&path) else {
            println!("{path}: no binary PGM");
            continue;
        };
        let regions: Vec<String> =
            find_text(&image).iter().map(|r| format!("{},{},{},{}", r.x, r.y, r.width, r.height)).collect();
        println!("{path}: {}", regions.join(" "));
    }
}
