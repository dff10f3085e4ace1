//! A terminal's screen as a picture: text in SVG, for documents.

use std::fmt::Write as _;

use crate::svg::escaped;

/// Size of a character in pixels, and the height of its base line.
const CHARACTER: (usize, usize) = (8, 17);
const BASE: usize = 13;
const MARGIN: usize = 8;
const GROUND: &str = "#16181d";
const INK: &str = "#d7dae0";
/// The terminal's first eight colours, and their bright ones.
const COLOURS: [&str; 16] = [
    "#3b4048", "#f2777a", "#99cc99", "#ffcc66", "#6699cc", "#cc99cc", "#66cccc", INK, "#747369", "#ff8f92", "#b5e0b5",
    "#ffe08a", "#86b8ea", "#e6b3e6", "#86e6e6", "#ffffff",
];

/// What characters look like.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Style {
    colour: Option<usize>,
    is_bold: bool,
    is_dim: bool,
    is_reversed: bool,
}

/// Returns a screen of this many columns, as `capture-pane -e` of tmux writes it, as SVG.
#[must_use]
pub fn svg(screen: &str, columns: usize) -> String {
    let lines: Vec<&str> = screen.lines().collect();
    let (width, height) = (columns * CHARACTER.0 + 2 * MARGIN, lines.len() * CHARACTER.1 + 2 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"13\" fill=\"{INK}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{GROUND}\"/>\n"
    );
    // A style lasts until the next one, beyond the end of a line too.
    let mut style = Style::default();
    for (number, line) in lines.iter().enumerate() {
        let mut column = 0;
        for (own, text) in runs(line, &mut style) {
            let length = text.chars().count();
            draw(&mut svg, own, &text, (column, number));
            column += length;
        }
    }
    svg + "</svg>\n"
}

/// Splits a line into texts of one style each.
fn runs(line: &str, style: &mut Style) -> Vec<(Style, String)> {
    let mut runs: Vec<(Style, String)> = Vec::new();
    let mut pieces = line.split("\x1b[");
    runs.push((*style, pieces.next().unwrap_or_default().to_owned()));
    for piece in pieces {
        let (codes, text) = piece.split_once('m').unwrap_or((piece, ""));
        style.change(codes);
        runs.push((*style, text.to_owned()));
    }
    runs
}

impl Style {
    /// Follows a sequence that selects colours and styles [ECMA-48, 8.3.117].
    fn change(&mut self, codes: &str) {
        let mut codes = codes.split(';').map(|code| code.parse().unwrap_or(0));
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Self::default(),
                1 => self.is_bold = true,
                2 => self.is_dim = true,
                7 => self.is_reversed = true,
                22 => (self.is_bold, self.is_dim) = (false, false),
                27 => self.is_reversed = false,
                30..=37 => self.colour = Some(code - 30),
                // An indexed colour.
                38 => self.colour = codes.nth(1),
                39 => self.colour = None,
                90..=97 => self.colour = Some(code - 82),
                _ => {}
            }
        }
    }
}

fn draw(svg: &mut String, style: Style, text: &str, (column, line): (usize, usize)) {
    if text.is_empty() {
        return;
    }
    let length = text.chars().count() * CHARACTER.0;
    let (x, y) = (MARGIN + column * CHARACTER.0, MARGIN + line * CHARACTER.1);
    let colour = style.colour.and_then(|colour| COLOURS.get(colour)).copied().unwrap_or(INK);
    if style.is_reversed {
        let height = CHARACTER.1;
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{length}\" height=\"{height}\" fill=\"{colour}\"/>");
    }
    if text.trim().is_empty() {
        return;
    }
    let fill = if style.is_reversed { GROUND } else { colour };
    let weight = if style.is_bold { " font-weight=\"bold\"" } else { "" };
    let dim = if style.is_dim { " opacity=\"0.65\"" } else { "" };
    let text = escaped(text);
    let y = y + BASE;
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" fill=\"{fill}\" textLength=\"{length}\" xml:space=\"preserve\"{weight}{dim}>{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_style_lasts_until_the_next_one() {
        let picture = svg("\x1b[1;33ma<b\x1b[0m c\n\x1b[7;38;5;1mx\x1b[27m y\n", 10);
        assert!(
            picture.contains("fill=\"#ffcc66\" textLength=\"24\" xml:space=\"preserve\" font-weight=\"bold\">a&lt;b<")
        );
        assert!(
            picture.contains("<text x=\"32\" y=\"21\" fill=\"#d7dae0\" textLength=\"16\" xml:space=\"preserve\"> c<")
        );
        assert!(picture.contains("<rect x=\"8\" y=\"25\" width=\"8\" height=\"17\" fill=\"#f2777a\"/>"));
        assert!(picture.contains("fill=\"#f2777a\" textLength=\"16\" xml:space=\"preserve\"> y<"), "{picture}");
    }
}
