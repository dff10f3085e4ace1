//! References to the names and values of a point's labels.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{JOB, request::Symbols};
use crate::{Labels, encode::wire::put_varint};

/// Labels of a sample that stand among those of its point.
pub(super) const NAME: &str = "__name__";
pub(super) const BOUND: &str = "le";

/// The labels of one point with those that a scrape adds, as references, encoded in the order of their names.
///
/// Most names and values are those of the point before, at the same place; only others are looked up. Most points of a
/// control plane have the labels of their instance alone, which are encoded once.
#[derive(Debug, Default)]
pub(super) struct LabelReferences {
    /// In the point's order, those that it has itself first.
    labels: Vec<Reference>,
    /// How many it has itself; `None` before the first point of a request.
    own: Option<usize>,
    /// Positions of the labels that have a value, by name.
    sorted: Vec<usize>,
    encoded: Encoded,
    /// Labels of instances, by their place in memory.
    instances: HashMap<usize, Encoded, RandomState>,
    /// The place of the current ones, if they are those of an instance.
    instance: Option<usize>,
}

/// Labels before `__name__`, between it and `le`, and behind.
type Encoded = [Vec<u8>; 3];

#[derive(Debug)]
struct Reference {
    name: String,
    value: String,
    name_symbol: u32,
    value_symbol: u32,
}

/// How the labels differ from those of the point before.
#[derive(Clone, Copy, Debug, Default)]
struct Differences {
    names: bool,
    values: bool,
}

impl LabelReferences {
    /// Forgets the last point: its references are of another request.
    pub(super) fn clear(&mut self) {
        self.labels.clear();
        self.own = None;
        self.instances.clear();
    }

    /// Encodes the labels of a point on this node.
    pub(super) fn encode(&mut self, labels: &Labels<'_>, node: &str, symbols: &mut Symbols) {
        self.instance = labels.instance_place();
        if self.instance.is_some_and(|place| self.instances.contains_key(&place)) {
            return;
        }
        let (mut own, mut differences) = (0, Differences::default());
        labels.each(|name, value| {
            self.set(own, name, value, symbols, &mut differences);
            own += 1;
        });
        if self.own != Some(own) || differences.names {
            self.labels.truncate(own);
            self.own = Some(own);
            differences.names = true;
            for (name, value) in [("job", JOB), ("instance", node)] {
                if !self.labels.iter().any(|label| label.name == name && !label.value.is_empty()) {
                    self.set(self.labels.len(), name, value, symbols, &mut differences);
                }
            }
        }
        if differences.names {
            self.sort();
        }
        if differences.names || differences.values {
            self.write();
        }
        self.instances.extend(self.instance.map(|place| (place, self.encoded.clone())));
    }

    /// Returns the labels before `__name__`, between it and `le`, and behind.
    pub(super) fn encoded(&self) -> &Encoded {
        self.instance.and_then(|place| self.instances.get(&place)).unwrap_or(&self.encoded)
    }

    fn set(&mut self, at: usize, name: &str, value: &str, symbols: &mut Symbols, differences: &mut Differences) {
        let Some(label) = self.labels.get_mut(at) else {
            let (name_symbol, value_symbol) = (symbols.get(name), symbols.get(value));
            self.labels.push(Reference { name: name.to_owned(), value: value.to_owned(), name_symbol, value_symbol });
            differences.names = true;
            return;
        };
        if label.name != name {
            name.clone_into(&mut label.name);
            label.name_symbol = symbols.get(name);
            differences.names = true;
        }
        if label.value != value {
            // A label without a value is not sent, as one that is absent.
            differences.names |= label.value.is_empty() || value.is_empty();
            differences.values = true;
            value.clone_into(&mut label.value);
            label.value_symbol = symbols.get(value);
        }
    }

    fn sort(&mut self) {
        let Self { labels, sorted, .. } = self;
        sorted.clear();
        sorted.extend(labels.iter().enumerate().filter(|(_, label)| !label.value.is_empty()).map(|(at, _)| at));
        sorted.sort_unstable_by_key(|at| labels.get(*at).map(|label| &*label.name));
    }

    fn write(&mut self) {
        let Self { labels, sorted, encoded, .. } = self;
        encoded.iter_mut().for_each(Vec::clear);
        let [before, between, behind] = encoded;
        for label in sorted.iter().filter_map(|at| labels.get(*at)) {
            let part = match &*label.name {
                name if name < NAME => &mut *before,
                name if name < BOUND => &mut *between,
                _ => &mut *behind,
            };
            put_varint(part, label.name_symbol.into());
            put_varint(part, label.value_symbol.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::remote_write::request::RequestBuilder;

    #[test]
    fn the_first_point_of_a_request_may_have_no_labels_of_its_own() {
        let (mut references, mut symbols) = (LabelReferences::default(), RequestBuilder::new().symbols);
        for _ in 0..2 {
            references.encode(&Labels::recorded(&[], &[]), "node-1", &mut symbols);
            let [before, between, behind] = references.encoded();
            assert_eq!([before.len(), between.len(), behind.len()], [0, 4, 0], "`instance` and `job`");
            references.clear();
        }
    }
}
