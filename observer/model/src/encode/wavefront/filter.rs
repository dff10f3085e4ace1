//! Filters of points and tags, with the legacy collector's semantics.

use super::glob::Glob;

/// Filters; an empty list filters nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Only metrics with a matching name.
    pub metric_allow: Vec<Glob>,
    /// No metrics with a matching name.
    pub metric_deny: Vec<Glob>,
    /// Only points with one of these tags and a matching value.
    pub metric_tag_allow: Vec<(String, Vec<Glob>)>,
    /// No points with one of these tags and a matching value.
    pub metric_tag_deny: Vec<(String, Vec<Glob>)>,
    /// Only tags with a matching key.
    pub tag_include: Vec<Glob>,
    /// No tags with a matching key.
    pub tag_exclude: Vec<Glob>,
}

impl Filters {
    /// Returns whether points of this name are sent.
    #[must_use]
    pub fn passes_name(&self, name: &str) -> bool {
        (self.metric_allow.is_empty() || any(&self.metric_allow, name)) && !any(&self.metric_deny, name)
    }

    /// Returns whether a point with these tags is sent.
    #[must_use]
    pub fn passes_tags<'a>(&self, tags: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> bool {
        let has = |filters: &[(String, Vec<Glob>)]| {
            let named =
                |(key, globs): &(String, Vec<Glob>)| tags.clone().any(|(own, value)| own == key && any(globs, value));
            filters.iter().any(named)
        };
        (self.metric_tag_allow.is_empty() || has(&self.metric_tag_allow)) && !has(&self.metric_tag_deny)
    }

    /// Returns whether tags of this key are kept. Not called for `le`, without which a histogram's buckets would
    /// collide.
    #[must_use]
    pub fn keeps_tag(&self, key: &str) -> bool {
        (self.tag_include.is_empty() || any(&self.tag_include, key)) && !any(&self.tag_exclude, key)
    }

    /// Returns whether tags may be dropped, so that points can become equal.
    #[must_use]
    pub fn drops_tags(&self) -> bool {
        !self.tag_include.is_empty() || !self.tag_exclude.is_empty()
    }

    /// Returns whether the name decides.
    #[must_use]
    pub fn filters_names(&self) -> bool {
        !self.metric_allow.is_empty() || !self.metric_deny.is_empty()
    }

    /// Returns whether the tags decide.
    #[must_use]
    pub fn filters_tags(&self) -> bool {
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
