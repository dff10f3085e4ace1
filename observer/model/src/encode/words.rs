//! Options that take one of a few words.

/// A word that is none of those that an option takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid value {word:?}: expected {expected}")]
pub struct UnknownWord {
    pub(super) word: String,
    pub(super) expected: &'static str,
}

/// Implements `FromStr` of an option.
macro_rules! words {
    ($type:ident: $expected:literal, $($word:literal = $variant:ident),*) => {
        impl std::str::FromStr for $type {
            type Err = $crate::encode::words::UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err($crate::encode::words::UnknownWord { word: text.to_owned(), expected: $expected }),
                }
            }
        }
    };
}

pub(super) use words;
