//! Minimal privileges: another user, five capabilities, a read-only file system. Each missing
//! capability is named, with its effect.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use harness::{
    apps::{raw::Connection, tcp},
    cases,
    mesh::Family,
    observer::Observer,
    pair::{Expected, Pair},
    sidecar::Options,
    tools,
};

/// Capabilities that `observer check` and README list, as setpriv(1) writes them.
const LEAST: [&str; 5] = ["bpf", "perfmon", "net_admin", "sys_ptrace", "dac_read_search"];
/// Numbers of the capabilities that it keeps while observing. [linux/capability.h]
const LEFT: [u32; 4] = [39, 12, 19, 2];
const SYS_ADMIN: u32 = 21;
/// Remounts all that it can, so that what remains writable is found by [`nothing_can_be_written`].
const READ_ONLY: &str = "while read -r _ _ _ _ at _; do mount -o remount,bind,ro \"$at\" 2>/dev/null; done </proc/self/mountinfo; exec \"$@\"";

fn main() -> ExitCode {
    cases::run(
        || Pair::unobserved(Options::default(), Options::default()),
        cases![
            the_least_is_enough_for_exact_counts,
            root_gives_up_the_rest,
            without_a_required_capability_it_is_named,
            without_ptrace_it_is_named,
            without_dac_read_search_it_is_named,
        ],
    )
}

fn the_least_is_enough_for_exact_counts(pair: &mut Pair) -> Result<String> {
    observe(pair, &LEAST)?;
    let observer = pair.observer.as_ref().context("just started")?;
    nothing_can_be_written(observer.pid())?;
    let threads = confined(observer.pid(), bits(&LEFT), true)?;
    let gaps = observer.log().lines().filter(|line| line.contains(" is missing")).count();
    ensure!(gaps == 0, "something is missing:\n{}", observer.log());
    let echo = tcp::echo(&pair.server, pair.tcp.target_port)?;
    pair.check(Expected::both(5), traffic).context("sidecars that were there")?;
    // Programs are attached to these later, with the remaining capabilities.
    for sidecar in &mut pair.sidecars {
        sidecar.replace_container()?;
    }
    pair.observer.as_mut().context("started above")?.wait_attached(2)?;
    let counted = pair.check(Expected::both(5), traffic).context("sidecars that came later")?;
    drop(echo);
    let observer = pair.observer.take().context("started above")?;
    ensure!(names_pod(&observer, pair)?, "the client's pod is not named");
    confined(observer.pid(), bits(&LEFT), true)?;
    observer.stop()?;
    Ok(format!("{threads} threads; {counted}"))
}

fn root_gives_up_the_rest(pair: &mut Pair) -> Result<String> {
    pair.observe(2)?;
    let observer = pair.observer.take().context("just started")?;
    let threads = confined(observer.pid(), bits(&LEFT) | 1 << SYS_ADMIN, false)?;
    observer.stop()?;
    Ok(format!("{threads} threads"))
}

fn without_a_required_capability_it_is_named(pair: &mut Pair) -> Result<String> {
    for missing in ["bpf", "perfmon", "net_admin"] {
        let name = name(missing);
        let rest = LEAST.into_iter().filter(|&capability| capability != missing);
        let rest: Vec<&str> = rest.collect();
        let refused = observe(pair, &rest).err().with_context(|| format!("it runs without {name}"))?;
        let refused = format!("{refused:#}");
        ensure!(refused.contains(&format!("error: {name} missing: ")), "{name} is not named: {refused}");
        checked(&rest, missing, "FAIL")?;
    }
    Ok(String::new())
}

fn without_ptrace_it_is_named(pair: &mut Pair) -> Result<String> {
    degraded(pair, "sys_ptrace")
}

fn without_dac_read_search_it_is_named(pair: &mut Pair) -> Result<String> {
    degraded(pair, "dac_read_search")
}

/// It counts, with fewer labels.
fn degraded(pair: &mut Pair, missing: &str) -> Result<String> {
    let rest: Vec<&str> = LEAST.into_iter().filter(|&capability| capability != missing).collect();
    observe(pair, &rest)?;
    let observer = pair.observer.take().context("just started")?;
    let log = observer.log();
    let warning = format!("{} is missing, needed ", name(missing));
    ensure!(log.contains(&warning), "{warning:?} is not said:\n{log}");
    ensure!(!names_pod(&observer, pair)?, "{} is not needed to name pods", name(missing));
    observer.stop()?;
    checked(&rest, missing, "note")?;
    Ok(String::new())
}

/// Returns whether the client's pod is known, which its sidecar's environment tells.
fn names_pod(observer: &Observer, pair: &Pair) -> Result<bool> {
    Ok(observer.scrape()?.samples("process_open_fds").any(|sample| sample.label("pod") == pair.client.pod))
}

/// Checks that `observer check` lists each capability with its state and purpose.
fn checked(held: &[&str], missing: &str, state: &str) -> Result<()> {
    let output = confine(held)?.arg("check").output().context("observer check")?;
    let report = String::from_utf8_lossy(&output.stdout);
    ensure!(
        report.contains(&format!("{state}  {}: missing, to ", name(missing))),
        "{missing} is not missing in:\n{report}"
    );
    for held in held {
        ensure!(report.contains(&format!("ok    {}: to ", name(held))), "{held} is not held in:\n{report}");
    }
    Ok(())
}

fn name(capability: &str) -> String {
    format!("CAP_{}", capability.to_uppercase())
}

/// Makes one request per protocol and per kind of name.
fn traffic(pair: &Pair) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let urls = [pair.web.url(family, "/bytes/1000"), pair.web.url(family, "/status/503")];
        pair.curl(&[&urls[0], "-o", "/dev/null", &urls[1]])?;
    }
    let mut connection = Connection::open(&pair.client, pair.tcp.address(Family::V4))?;
    connection.send("five words of plain tcp")?;
    connection.receive(23)?;
    Ok(())
}

/// Starts an observer as user nobody with these capabilities only, on a read-only file system.
fn observe(pair: &mut Pair, capabilities: &[&str]) -> Result<()> {
    let executable = pair.mesh.executable();
    let arguments = ["--sidecar-exe", executable.as_str()];
    let mut command = confine(capabilities)?;
    let tables = pair.mesh.observer_tables();
    pair.observer = Some(Observer::launch(&mut command, pair.mesh.directory(), &tables, 2, &arguments)?);
    Ok(())
}

fn confine(capabilities: &[&str]) -> Result<Command> {
    let list: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
    let only = format!("-all{list}");
    let mut command = Command::new(tools::require("unshare")?);
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", READ_ONLY, "sh", "setpriv"])
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["--inh-caps", &only, "--ambient-caps", &only, "--bounding-set", &only])
        .arg(tools::observer()?);
    Ok(command)
}

/// Checks that no mount of the process is writable, except those that the kernel does not let change and that hold no
/// files.
fn nothing_can_be_written(pid: u32) -> Result<()> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    // The last mount at a path hides the others.
    let places: BTreeMap<&str, &str> = mounts
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            Some((*fields.get(4)?, *fields.get(5)?))
        })
        .collect();
    let writable: Vec<_> =
        places.iter().filter(|(_, options)| !options.split(',').any(|option| option == "ro")).collect();
    ensure!(places.contains_key("/") && writable.is_empty(), "{writable:?} can be written");
    Ok(())
}

fn bits(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |bits, number| bits | 1 << number)
}

/// Checks that every thread has these capabilities, cannot get others, and has a seccomp filter. `given` by the parent,
/// the bounding set cannot be changed and has no effect.
fn confined(pid: u32, capabilities: u64, given: bool) -> Result<usize> {
    let threads: Vec<_> = fs::read_dir(format!("/proc/{pid}/task"))?.collect::<Result<_, _>>()?;
    for thread in &threads {
        let status = fs::read_to_string(thread.path().join("status"))?;
        let field = |name: &str| -> Result<&str> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).with_context(|| format!("no {name} in:\n{status}"))
        };
        let set = |name: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(field(name)?, 16)?);
        for (name, expected) in [("CapPrm", capabilities), ("CapEff", capabilities), ("CapInh", 0), ("CapAmb", 0)] {
            ensure!(set(name)? == expected, "{name} is {:x} instead of {expected:x}", set(name)?);
        }
        let bounds = if given { bits(&[39, 38, 12, 19, 2]) } else { capabilities };
        ensure!(set("CapBnd")? == bounds, "CapBnd is {:x} instead of {bounds:x}", set("CapBnd")?);
        ensure!((field("NoNewPrivs")?, field("Seccomp")?) == ("1", "2"), "it is not confined:\n{status}");
    }
    Ok(threads.len())
}
