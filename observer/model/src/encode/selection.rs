//! Query parameters of `/metrics`: `?name[]=NAME` selects one family, `?family=PATTERN` all with a matching name. Both
//! may be repeated; without either, everything is selected. `?created=true` adds OpenMetrics' `_created`, a series per
//! counter and histogram, which Prometheus 2 stores as metrics of their own.

use std::borrow::Cow;

/// Selected families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    names: Vec<String>,
    patterns: Vec<String>,
    with_created: bool,
}

impl Selection {
    /// Returns the selection of a query; unknown parameters are ignored.
    #[must_use]
    pub fn of<'a>(parameters: impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>) -> Self {
        let mut selection = Self::default();
        for (name, value) in parameters {
            match &*name {
                "name[]" => selection.names.push(value.into_owned()),
                "family" => selection.patterns.push(value.into_owned()),
                "created" => selection.with_created = value == "true",
                _ => {}
            }
        }
        selection
    }

    /// Returns whether `_created` samples are selected.
    #[must_use]
    pub fn includes_created(&self) -> bool {
        self.with_created
    }

    /// Returns whether the family of this name is selected. A sample's name selects its family.
    #[must_use]
    pub fn contains(&self, family: &str) -> bool {
        let named = |name: &String| {
            let suffix = name.strip_prefix(family);
            suffix.is_some_and(|suffix| matches!(suffix, "" | "_bucket" | "_sum" | "_count"))
        };
        let everything = self.names.is_empty() && self.patterns.is_empty();
        everything
            || self.names.iter().any(named)
            || self.patterns.iter().any(|pattern| matches_pattern(pattern, family))
    }
}

/// Returns whether a name matches a pattern, in which `*` matches any text.
#[must_use]
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
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
        assert!(selection(&[]).contains("a") && selection(&[("other", "b")]).contains("a"));
        let names = selection(&[("name[]", "a_total"), ("name[]", "h_bucket")]);
        assert!(names.contains("a_total") && names.contains("h") && !names.contains("a") && !names.contains("h_buck"));
        let both = selection(&[("name[]", "a"), ("family", "pilot_*"), ("family", "go_*_bytes")]);
        assert!(both.contains("a") && both.contains("pilot_services") && both.contains("go_memstats_alloc_bytes"));
        assert!(!both.contains("go_goroutines") && !both.contains("my_pilot_services"));
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
            assert_eq!(matches_pattern(pattern, name), expected, "{pattern} {name}");
        }
    }
}
