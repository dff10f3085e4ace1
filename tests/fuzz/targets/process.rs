//! Untrusted files of a process in `/proc`: environment, command line, mounts, sockets, addresses, cgroup, mounted
//! labels, statistics after an arbitrary name. For any input it terminates, and kept text is short and on one line.
//!
//! Input: a byte that selects one of them, then its content.
#![no_main]

use std::{collections::BTreeMap, path::Path};

use libfuzzer_sys::fuzz_target;
use observer::discovery::{
    ProcessId,
    addresses::of_namespace,
    bootstrap,
    container::Container,
    pod_labels,
    proc_files::{
        Configuration, Executable, MAX_NAME_BYTES, agent_role, environment, hidepid, invocation_names, listeners,
        monitoring_port, mounts, node_type, unified_path,
    },
    process::{ProcessFacts, classify, identity, max_value_bytes, warnings},
};
use procfs::{FromRead as _, process::Stat};

/// A variable of [`MAX_NAME_BYTES`] has no more addresses, of the shortest kind (`::`) and with a comma each.
const MOST_ADDRESSES: usize = 3 * (MAX_NAME_BYTES / 3 + 1);

fuzz_target!(|input: &[u8]| {
    let Some((&which, bytes)) = input.split_first() else { return };
    match which % 8 {
        0 => known(environment(bytes, max_value_bytes), [None, None, None]),
        1 => {
            let text = Configuration::of(bytes).text.unwrap_or_default();
            let types =
                [node_type(bytes), bootstrap::of_text(&text).or_else(|| bootstrap::of_text(bytes)), agent_role(bytes)];
            known(BTreeMap::new(), types);
            let loader = Executable { name: "ld.so".to_owned(), path: None };
            assert!(invocation_names(&loader, bytes).iter().all(|name| fits(name, MAX_NAME_BYTES)));
        }
        2 => {
            let _ = monitoring_port(bytes);
        }
        3 => {
            let found = mounts(bytes);
            let _ = hidepid(&found, Path::new("/proc"));
            assert!(found.len() <= bytes.len());
        }
        4 => {
            let found = listeners(bytes).expect("bytes in memory are always there");
            assert!(found.len() <= bytes.len());
        }
        5 => {
            let third = bytes.len() / 3;
            let found = of_namespace(&bytes[..third], &bytes[third..2 * third], &bytes[2 * third..]);
            assert!(found.len() <= bytes.len());
        }
        6 => {
            // Of what the kernel writes there, the process chooses its name alone.
            let line =
                [b"7 (", bytes, b") S 1 1 1 0 -1 64 5 0 0 0 2 3 0 0 20 0 9 0 500 4096 3", &b" 0".repeat(28)].concat();
            assert_eq!(Stat::from_read(&line[..]).expect("a line").starttime, 500);
        }
        _ => {
            let labels = pod_labels::parse(bytes);
            assert!(labels.iter().all(|(key, value)| fits(key, 400) && fits(value, MAX_NAME_BYTES)));
            let text = String::from_utf8_lossy(bytes);
            if let Some(path) = unified_path(&text) {
                let _ = Container::of_cgroup(path);
            }
        }
    }
});

/// Classifies it and reads its identity.
fn known(environment: BTreeMap<String, String>, [node_type, bootstrap, agent]: [Option<String>; 3]) {
    let facts = ProcessFacts {
        process: ProcessId { pid: 1, start_time: 1 },
        executable: Executable { name: "envoy".to_owned(), path: None },
        environment: Some(environment),
        node_type,
        bootstrap,
        agent,
        listening: None,
        cgroup: "/".to_owned(),
    };
    let verdict =
        format!("{:?} {:?}", classify(&facts, None), warnings(&facts, None, observer::discovery::Role::Sidecar));
    assert!(verdict.len() < 2000 && !verdict.contains('\n'));
    let (workload, addresses) = identity(&facts, None, || None);
    let own = [
        &workload.pod,
        &workload.namespace,
        &workload.cluster,
        &workload.service_account,
        &workload.trust_domain,
        &workload.node,
    ];
    assert!(own.into_iter().flatten().all(|text| fits(text, MAX_NAME_BYTES)));
    assert!(workload.name.iter().chain(workload.labels.values()).all(|text| fits(text, MAX_NAME_BYTES)));
    assert!(addresses.len() <= MOST_ADDRESSES);
}

/// Returns whether it is short and on one line, however a line may end.
fn fits(text: &str, most: usize) -> bool {
    text.len() <= most && text.chars().all(|c| !c.is_control() && c != '\u{2028}' && c != '\u{2029}')
}
