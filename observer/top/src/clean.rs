//! Text of others that may be shown: nothing in it commands a terminal, and it is not long.

use std::{fmt, ops::Deref};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// Maximum number of characters that are kept: the longest findings have a few hundred.
const MAX_CHARS: usize = 1_000;
/// Stands for a character that is not shown.
const REPLACEMENT: char = '\u{fffd}';

/// A text as [`clean`] leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Clean(String);

impl Deref for Clean {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Clean {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Clean;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Clean, E> {
                Ok(Clean(clean(text)))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// Returns the text without characters that would command a terminal or change how its neighbours are shown, and cut.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().take(MAX_CHARS).map(|c| if is_shown(c) { c } else { REPLACEMENT }).collect()
}

/// Returns whether a character is neither a control character, nor invisible, nor changes the direction of text.
fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_commands_a_terminal() {
        assert_eq!(clean("a\u{1b}[2J\u{9b}31m\r\n\u{7}b\u{202e}c\u{200b}"), "a�[2J�31m���b�c�");
        assert_eq!(clean("größe-日本"), "größe-日本");
        assert_eq!(clean(&"x".repeat(5_000)).len(), MAX_CHARS);
    }
}
