//! The node id in Envoy's bootstrap configuration. The file belongs to an untrusted process.
//!
//! pilot-agent writes it to `etc/istio/proxy/envoy-rev.json` and passes it as `-c`; the id begins with the proxy's role
//! [istio `pkg/bootstrap/config.go`, `pkg/envoy/proxy.go`].

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    foreign_file::{self, Base},
    proc_files::{Configuration, ProcFiles, type_of_node},
};

/// Maximum bytes read; bootstraps of pilot-agent have some 20,000.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
struct Bootstrap {
    node: Option<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: Option<String>,
}

/// Returns the type in the node id of a process: from text on its command line, which Envoy merges over the file, or
/// from the file that it names.
pub fn node_type(files: &ProcFiles, pid: u32, arguments: &[u8]) -> Option<String> {
    let Configuration { path, text } = Configuration::of(arguments);
    let given = text.and_then(|text| of_text(&text));
    given.or_else(|| {
        let path = PathBuf::from(OsStr::from_bytes(&path?));
        let content = read(files, pid, &path);
        let content = content.inspect_err(|error| tracing::debug!(pid, %error, "its bootstrap cannot be read")).ok()?;
        of_text(&content)
    })
}

fn read(files: &ProcFiles, pid: u32, path: &Path) -> std::io::Result<Vec<u8>> {
    let (directory, base) = if path.is_absolute() {
        (files.root_directory(pid), Base::Root)
    } else {
        (files.working_directory(pid), Base::Directory)
    };
    foreign_file::read(&directory, base, path, MAX_BYTES)
}

/// Returns the type in the node id of a configuration: JSON, or YAML of a simple form.
pub fn of_text(text: &[u8]) -> Option<String> {
    match serde_json::from_slice::<Bootstrap>(text) {
        Ok(bootstrap) => type_of_node(bootstrap.node?.id?.as_bytes()),
        Err(_) => of_yaml(std::str::from_utf8(text).ok()?),
    }
}

/// Reads `id`, a plain or quoted word, in the top-level block `node`.
fn of_yaml(text: &str) -> Option<String> {
    let mut lines = text.lines().skip_while(|line| line.trim_end() != "node:").skip(1);
    let id = lines
        .by_ref()
        .take_while(|line| line.is_empty() || line.starts_with([' ', '#']))
        .find_map(|line| line.trim().strip_prefix("id:"))?;
    type_of_node(id.trim().trim_matches(['"', '\'']).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use proptest::prelude::*;

    use super::*;

    const ROUTER: &str = r#"{"node":{"id":"router~10.0.0.1~edge.istio~istio.svc","metadata":{"a":[1]}},"admin":{}}"#;

    #[test]
    fn finds_the_type_in_every_form() {
        for (text, expected) in [
            (ROUTER, Some("router")),
            (r#"{"node":{"id":"test-id"}}"#, None),
            (r#"{"node":{"cluster":"x"}}"#, None),
            (r#"{"static_resources":{}}"#, None),
            ("admin: {}\nnode:\n  cluster: a.b\n  id: \"sidecar~1~2~3\"\nstatic_resources: {}\n", Some("sidecar")),
            ("node:\n  metadata: {}\nstatic_resources:\n  id: sidecar~1~2~3\n", None),
            ("other:\n  node:\n    id: sidecar~1~2~3\n", None),
            ("", None),
        ] {
            assert_eq!(of_text(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }

    /// A process whose root and working directory are given.
    fn files(root: &Path) -> (tempfile::TempDir, ProcFiles) {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("7")).unwrap();
        symlink(root, proc.path().join("7/root")).unwrap();
        symlink(root.join("work"), proc.path().join("7/cwd")).unwrap();
        let files = ProcFiles::new(proc.path().to_owned());
        (proc, files)
    }

    #[test]
    fn reads_what_the_command_line_names_in_the_processs_own_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("work/etc")).unwrap();
        fs::write(root.path().join("boot.json"), ROUTER).unwrap();
        fs::write(root.path().join("work/etc/envoy-rev.json"), ROUTER.replace("router", "waypoint")).unwrap();
        let (_proc, files) = files(root.path());
        for (arguments, expected) in [
            (&b"envoy\0-c\0/boot.json\0"[..], Some("router")),
            (b"envoy\0-c\0etc/envoy-rev.json\0", Some("waypoint")),
            (b"envoy\0-c\0/boot.json\0--config-yaml\0{\"node\":{\"id\":\"sidecar~1~2~3\"}}\0", Some("sidecar")),
            (b"envoy\0-c\0/boot.json\0--config-yaml\0{\"admin\":{}}\0", Some("router")),
            (b"envoy\0-c\0../boot.json\0", None),
            (b"envoy\0-c\0/absent\0", None),
            (b"envoy\0", None),
        ] {
            assert_eq!(node_type(&files, 7, arguments).as_deref(), expected, "{}", String::from_utf8_lossy(arguments));
        }
    }

    #[test]
    fn a_bootstrap_without_end_is_none() {
        let root = tempfile::tempdir().unwrap();
        let file = fs::File::create(root.path().join("boot.json")).unwrap();
        file.set_len(1 << 40).unwrap();
        let (_proc, files) = files(root.path());
        assert_eq!(node_type(&files, 7, b"envoy\0-c\0/boot.json\0"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(\\{|\\}|\"|:|,|node|id|~|\\[|\n| ){0,60}") {
            let _ = of_text(text.as_bytes());
        }
    }
}
