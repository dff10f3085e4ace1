//! Which part of a page is asked for: `?name[]=NAME` for one family, `?family=PATTERN` for all whose name fits. Both may be
//! repeated; without any, all are. `?created=false` leaves out when counters were 0, a series for each.

use std::borrow::Cow;

/// A choice of families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    names: Vec<String>,
    patterns: Vec<String>,
    without_created: bool,
}

impl Selection {
    /// The choice that the parameters of a query make; other parameters choose nothing.
    #[must_use]
    pub fn of<'a>(parameters: impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>) -> Self {
        let mut selection = Self::default();
        for (name, value) in parameters {
            match &*name {
                "name[]" => selection.names.push(value.into_owned()),
                "family" => selection.patterns.push(value.into_owned()),
                "created" => selection.without_created = value == "false",
                _ => {}
            }
        }
        selection
    }

    /// Whether times of creation are asked for.
    #[must_use]
    pub fn takes_created(&self) -> bool {
        !self.without_created
    }

    /// Whether the family of this name is asked for. A sample's name asks for its family.
    #[must_use]
    pub fn takes(&self, family: &str) -> bool {
        let named = |name: &String| {
            let suffix = name.strip_prefix(family);
            suffix.is_some_and(|suffix| matches!(suffix, "" | "_bucket" | "_sum" | "_count"))
        };
        let everything = self.names.is_empty() && self.patterns.is_empty();
        everything || self.names.iter().any(named) || self.patterns.iter().any(|pattern| is_like(pattern, family))
    }
}

/// Whether a name is as a pattern says; `*` stands for any text.
#[must_use]
pub fn is_like(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(parameters: &[(&'static str, &'static str)]) -> Selection {
        Selection::of(parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn names_choose_one_and_patterns_several() {
        assert!(selection(&[]).takes("a") && selection(&[("other", "b")]).takes("a"));
        let names = selection(&[("name[]", "a_total"), ("name[]", "h_bucket")]);
        assert!(names.takes("a_total") && names.takes("h") && !names.takes("a") && !names.takes("h_buck"));
        let both = selection(&[("name[]", "a"), ("family", "pilot_*"), ("family", "go_*_bytes")]);
        assert!(both.takes("a") && both.takes("pilot_services") && both.takes("go_memstats_alloc_bytes"));
        assert!(!both.takes("go_goroutines") && !both.takes("my_pilot_services"));
    }

    #[test]
    fn a_star_is_any_text() {
        for (pattern, name, expected) in [
            ("*", "abc", true),
            ("", "abc", false),
            ("abc", "abc", true),
            ("ab", "abc", false),
            ("a*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("*b*", "abc", true),
            ("a*a", "a", false),
            ("a**", "a", true),
        ] {
            assert_eq!(is_like(pattern, name), expected, "{pattern} {name}");
        }
    }
}
