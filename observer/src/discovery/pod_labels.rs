//! Pod labels that the downward API mounts into a sidecar's container. Current injectors use it instead of
//! `ISTIO_METAJSON_LABELS` [istio `injection-template.yaml`: volume `istio-podinfo` at `/etc/istio/pod`].
//!
//! The file belongs to an untrusted container.

use std::{collections::BTreeMap, path::Path};

use super::{
    foreign_file::{self, Base},
    proc_files::{MAX_NAME_BYTES, is_printable, printable_text},
};

const LABELS: &str = "etc/istio/pod/labels";
/// Maximum bytes of all labels together; Kubernetes allows far less.
pub const MAX_BYTES: usize = 64 << 10;
/// Maximum bytes of a label key: a prefix, a slash and a name of 63.
const MAX_KEY_BYTES: usize = MAX_NAME_BYTES + 1 + 63;

/// Reads the labels of the pod with this root directory; `None` if there is no such file.
pub fn read(root: &Path) -> Option<BTreeMap<String, String>> {
    let lines = foreign_file::read(root, Base::Root, Path::new(LABELS), MAX_BYTES as u64).ok()?;
    Some(parse(&lines))
}

/// Parses labels from the injector's JSON; `None` if it is not an object of strings.
pub fn from_json(text: &str) -> Option<BTreeMap<String, String>> {
    let labels: BTreeMap<String, String> = serde_json::from_str(text).ok()?;
    Some(labels.into_iter().filter(|(key, value)| is_label(key, value)).collect())
}

/// Parses lines of `key="value"`. Label values need no escapes [kubernetes: letters, digits, `-`, `_`, `.`], so lines
/// with any are skipped.
pub fn parse(lines: &[u8]) -> BTreeMap<String, String> {
    lines
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let line = printable_text(line, MAX_BYTES)?;
            let (key, value) = line.split_once('=')?;
            let value = value.strip_prefix('"')?.strip_suffix('"')?;
            (!value.contains(['"', '\\']) && is_label(key, value)).then(|| (key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// A value may be empty.
fn is_label(key: &str, value: &str) -> bool {
    is_printable(key, MAX_KEY_BYTES) && (value.is_empty() || is_printable(value, MAX_NAME_BYTES))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_as_the_downward_api_writes() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("etc/istio/pod");
        fs::create_dir_all(pod.join("..2026")).unwrap();
        fs::write(pod.join("..2026/labels"), "app=\"reviews\"\nversion=\"v1\"\nempty=\"\"\nbad=x\n").unwrap();
        symlink("..2026", pod.join("..data")).unwrap();
        symlink("..data/labels", pod.join("labels")).unwrap();
        let labels = read(root.path()).unwrap();
        assert_eq!(labels["app"], "reviews");
        assert_eq!(labels["empty"], "");
        assert_eq!(labels.len(), 3);
    }

    #[test]
    fn stays_inside_the_container() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "secret=\"x\"\n").unwrap();
        fs::create_dir_all(root.path().join("etc/istio/pod")).unwrap();
        symlink(outside.path(), root.path().join(LABELS)).unwrap();
        assert_eq!(read(root.path()), None);
    }

    #[test]
    fn takes_json_only_as_an_object_of_strings() {
        assert_eq!(
            from_json(r#"{"app":"a","bad":"x\ny"}"#),
            Some(BTreeMap::from([("app".to_owned(), "a".to_owned())]))
        );
        for text in ["", "[]", r#"{"app":1}"#] {
            assert_eq!(from_json(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[a-z=\"\\\\\\n]{0,60}") {
            let _ = (parse(&bytes), parse(text.as_bytes()), from_json(&text));
        }
    }
}
