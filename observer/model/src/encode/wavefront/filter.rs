//! Which points and which of their tags are sent: the old collector's filters, with its meaning.

use super::glob::Glob;

/// Filters. An empty list filters nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Only metrics with such a name.
    pub metric_allow: Vec<Glob>,
    /// No metrics with such a name.
    pub metric_deny: Vec<Glob>,
    /// Only points that have one of these tags with such a value.
    pub metric_tag_allow: Vec<(String, Vec<Glob>)>,
    /// No points that have one of these tags with such a value.
    pub metric_tag_deny: Vec<(String, Vec<Glob>)>,
    /// Only tags with such a key.
    pub tag_include: Vec<Glob>,
    /// No tags with such a key.
    pub tag_exclude: Vec<Glob>,
}

impl Filters {
    /// Whether points of this name are sent.
    #[must_use]
    pub fn passes_name(&self, name: &str) -> bool {
        (self.metric_allow.is_empty() || any(&self.metric_allow, name)) && !any(&self.metric_deny, name)
    }

    /// Whether a point with these tags is sent.
    #[must_use]
    pub fn passes_tags<'a>(&self, tags: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> bool {
        let has = |filters: &[(String, Vec<Glob>)]| {
            let named =
                |(key, globs): &(String, Vec<Glob>)| tags.clone().any(|(own, value)| own == key && any(globs, value));
            filters.iter().any(named)
        };
        (self.metric_tag_allow.is_empty() || has(&self.metric_tag_allow)) && !has(&self.metric_tag_deny)
    }

    /// Whether tags of this key stay. It is not asked for `le`: without it the buckets of a histogram would be one series.
    #[must_use]
    pub fn keeps_tag(&self, key: &str) -> bool {
        (self.tag_include.is_empty() || any(&self.tag_include, key)) && !any(&self.tag_exclude, key)
    }

    /// Whether points can become alike because some of their tags go.
    #[must_use]
    pub fn drops_tags(&self) -> bool {
        !self.tag_include.is_empty() || !self.tag_exclude.is_empty()
    }

    /// Whether it takes a point's name to tell if it is sent.
    #[must_use]
    pub fn asks_for_names(&self) -> bool {
        !self.metric_allow.is_empty() || !self.metric_deny.is_empty()
    }

    /// Whether it takes a point's tags to tell if it is sent.
    #[must_use]
    pub fn asks_for_tags(&self) -> bool {
        !self.metric_tag_allow.is_empty() || !self.metric_tag_deny.is_empty()
    }
}

fn any(globs: &[Glob], text: &str) -> bool {
    globs.iter().any(|glob| glob.matches(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(patterns: &[&str]) -> Vec<Glob> {
        patterns.iter().map(|pattern| pattern.parse().unwrap()).collect()
    }

    #[test]
    fn names_need_the_allow_list_and_must_avoid_the_deny_list() {
        let filters =
            Filters { metric_allow: globs(&["a.*", "b"]), metric_deny: globs(&["*.x"]), ..Filters::default() };
        for (name, passes) in [("a.b", true), ("b", true), ("a.x", false), ("c", false)] {
            assert_eq!(filters.passes_name(name), passes, "{name}");
        }
        assert!(Filters::default().passes_name("anything"));
    }

    #[test]
    fn one_tag_that_matches_suffices() {
        let list = |key: &str, patterns: &[&str]| vec![(key.to_owned(), globs(patterns))];
        let passes = |filters: &Filters, tags: &[(&str, &str)]| filters.passes_tags(tags.iter().copied());
        let allow = Filters { metric_tag_allow: list("env", &["prod*", "x"]), ..Filters::default() };
        assert!(passes(&allow, &[("env", "production"), ("a", "b")]));
        assert!(!passes(&allow, &[("env", "test")]) && !passes(&allow, &[("a", "production")]) && !passes(&allow, &[]));
        let deny = Filters { metric_tag_deny: list("env", &["test*"]), ..Filters::default() };
        assert!(!passes(&deny, &[("env", "testing")]));
        assert!(passes(&deny, &[("env", "prod")]) && passes(&deny, &[]));
    }

    #[test]
    fn tags_go_by_their_key() {
        let filters = Filters { tag_include: globs(&["foo*"]), tag_exclude: globs(&["*bar"]), ..Filters::default() };
        for (key, stays) in [("foo", true), ("foobar", false), ("other", false)] {
            assert_eq!(filters.keeps_tag(key), stays, "{key}");
        }
    }
}
