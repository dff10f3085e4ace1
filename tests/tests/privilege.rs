//! As little as an observer needs: another user, five capabilities, a file system where nothing can be written. Each that is
//! missing is named, and so is what is missing with it.

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

/// What `observer check` and README name, as setpriv(1) writes it.
const LEAST: [&str; 5] = ["bpf", "perfmon", "net_admin", "sys_ptrace", "dac_read_search"];
/// Numbers of those that remain once it observes. [linux/capability.h]
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
    // Programs are attached to these in the steady state, with what is left then.
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

/// It counts, and knows less of whom it counts.
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

/// Whether the client's pod is known, which its sidecar's environment tells.
fn names_pod(observer: &Observer, pair: &Pair) -> Result<bool> {
    Ok(observer.scrape()?.samples("process_open_fds").any(|sample| sample.label("pod") == pair.client.pod))
}

/// `observer check` says of each capability whether it is there, and what it is for.
fn checked(held: &[&str], missing: &str, state: &str) -> Result<()> {
    let output = confine(held)?.arg("check").output().context("observer check")?;
    let page = String::from_utf8_lossy(&output.stdout);
    ensure!(
        page.contains(&format!("{state}  {}: missing, to ", name(missing))),
        "{missing} is not missing in:\n{page}"
    );
    for held in held {
        ensure!(page.contains(&format!("ok    {}: to ", name(held))), "{held} is not held in:\n{page}");
    }
    Ok(())
}

fn name(capability: &str) -> String {
    format!("CAP_{}", capability.to_uppercase())
}

/// One answer each of both protocols' and all kinds' of names.
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

/// Starts an observer as nobody with these capabilities only, where nothing can be written.
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

/// No mount of the process's can be written, but for those that the kernel does not let change and that hold no files.
fn nothing_can_be_written(pid: u32) -> Result<()> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    // The last one at a place hides the others.
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

/// Every thread has these capabilities, no others and no way to get any, and its calls are filtered. `given` by whoever started
/// it is a bounding set that it may not change and that bounds nothing any more.
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
