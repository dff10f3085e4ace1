//! Unsuitable environments and invalid input: the release observer must name cause and remedy, and end
//! with the right exit code: 1 could not run, 2 wrong usage.

use std::{
    collections::BTreeSet,
    env, fs, io,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{cgroup, tools};
use observer_common::names;
use serde_json::Value;

const COULD_NOT_RUN: i32 = 1;
const WRONG_USAGE: i32 = 2;

/// Limits the time until the observer refuses, in seconds; `timeout` ends one that runs instead.
const REFUSAL_TIMEOUT: &str = "60";

/// Half of the verifier's instruction limit, as a margin for other kernels.
const VERIFIER_BUDGET: u64 = 500_000;

const NOBODY: [&str; 6] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

const HIDDEN: [&str; 6] =
    ["unshare", "--mount", "sh", "-c", "mount -t proc -o hidepid=2 proc /proc && exec \"$@\"", "sh"];

/// Any free port; nothing listens before the failures that are tested here.
const RUN: [&str; 3] = ["run", "--listen", "127.0.0.1:0"];

#[test]
fn works_here_within_half_of_the_verifier_budget() -> Result<()> {
    let said = said(&mut observer(&[], &["check"])?)?;
    said.is(0, &["Result: `observer run` works here."])?;
    let mut programs = BTreeSet::new();
    for line in said.out.lines().filter(|line| line.ends_with(" instructions verified")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, program, number, ..] = words[..] else { continue };
        println!("{program}: {number} instructions verified");
        let number: u64 = number.parse().context("number of instructions")?;
        ensure!(number <= VERIFIER_BUDGET, "{program}: {number} instructions verified, more than {VERIFIER_BUDGET}");
        programs.insert(program);
    }
    ensure!(programs == names::PROGRAMS.into_iter().collect(), "only {programs:?} were verified");
    Ok(())
}

#[test]
fn no_root() -> Result<()> {
    let remedy = "not permitted: run as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN";
    said(&mut observer(&NOBODY, &RUN)?)?.is(COULD_NOT_RUN, &[remedy])?;
    said(&mut observer(&NOBODY, &["check"])?)?.is(
        COULD_NOT_RUN,
        &["Privileges (user 65534)", "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN missing (run as root or grant them)"],
    )
}

#[test]
fn root_without_cap_bpf() -> Result<()> {
    root_without("bpf", "cannot create map ")
}

#[test]
fn root_without_cap_perfmon() -> Result<()> {
    root_without("perfmon", "the kernel rejects program mesh_")
}

#[test]
fn root_without_cap_net_admin() -> Result<()> {
    root_without("net_admin", "cannot load program mesh_connect4: not permitted")
}

fn root_without(capability: &str, refusal: &str) -> Result<()> {
    let bounds = format!("--bounding-set=-{capability},-sys_admin");
    let place = ["setpriv", &bounds, "--inh-caps=-all"];
    let name = format!("CAP_{}", capability.to_uppercase());
    said(&mut observer(&place, &RUN)?)?.is(COULD_NOT_RUN, &[refusal, &name])?;
    let failure = format!("FAIL  {name}: missing, ");
    let result = format!("{name} missing (run as root or grant them)");
    said(&mut observer(&place, &["check"])?)?.is(COULD_NOT_RUN, &[&failure, refusal, &result])
}

#[test]
fn the_least_capabilities_are_enough() -> Result<()> {
    said(&mut observer(&as_nobody_with("+bpf,+perfmon,+net_admin"), &["check"])?)?
        .is(0, &["Privileges (user 65534)", "note  CAP_SYS_PTRACE: missing", "works here."])
}

#[test]
fn bpf_forbidden_by_a_security_module() -> Result<()> {
    let reason = "cannot create map ";
    let remedy = "a security module or kernel lockdown forbids BPF (see `observer check`)";
    let refused = |arguments: &[&str]| {
        let mut command = observer(&[], arguments)?;
        refuse_bpf(&mut command, None, libc::EPERM);
        said(&mut command)
    };
    refused(&RUN)?.is(COULD_NOT_RUN, &[reason, remedy])?;
    refused(&["check"])?.is(
        COULD_NOT_RUN,
        &["lockdown: ", "ok    CAP_BPF", reason, remedy, "cannot work here: the eBPF programs cannot be loaded"],
    )
}

#[test]
fn kernel_without_a_needed_feature() -> Result<()> {
    const BPF_MAP_CREATE: u32 = 0;
    const BPF_PROG_LOAD: u32 = 5;
    for (call, reason) in [
        (BPF_MAP_CREATE, "Invalid argument (os error 22); the kernel lacks the features of Linux 5.17"),
        (BPF_PROG_LOAD, "this kernel lacks bpf_loop and atomics that return a value, which Linux has since 5.17"),
    ] {
        for (arguments, result) in [(&RUN[..], "error: "), (&["check"], "the eBPF programs cannot be loaded")] {
            let mut command = observer(&[], arguments)?;
            refuse_bpf(&mut command, Some(call), libc::EINVAL);
            said(&mut command)?.is(COULD_NOT_RUN, &[reason, result])?;
        }
    }
    Ok(())
}

#[test]
fn no_cgroup_v2() -> Result<()> {
    let place = ["unshare", "--mount", "sh", "-c", "umount -a -t cgroup2 && exec \"$@\"", "sh"];
    let reason = "no cgroup v2 file system is mounted (/proc/self/mountinfo has no line of type cgroup2)";
    let remedy = "mount -t cgroup2 none";
    said(&mut observer(&place, &RUN)?)?.is(COULD_NOT_RUN, &[reason, remedy])?;
    let place = [&place[..], &NOBODY].concat();
    said(&mut observer(&place, &["check"])?)?.is(COULD_NOT_RUN, &[reason, remedy, "the node cannot be scanned"])
}

#[test]
fn cgroup_that_is_none() -> Result<()> {
    let root = cgroup::root()?;
    let root = root.to_string_lossy();
    let file = format!("{root}/cgroup.procs");
    for (path, reason) in [
        ("/proc/sys", "/proc/sys is not a cgroup v2 directory: it is on another file system"),
        ("/no-such-cgroup", "no-such-cgroup is not a cgroup v2 directory: it does not exist"),
        (file.as_str(), "cgroup.procs is not a cgroup v2 directory: it is not a directory"),
    ] {
        let report = said(&mut observer(&NOBODY, &["check", "--cgroup", path])?)?;
        report.is(COULD_NOT_RUN, &[reason, "the node cannot be scanned"])?;
    }
    said(&mut observer(&[], &[&RUN[..], &["--cgroup", "/proc/sys"]].concat())?)?
        .is(COULD_NOT_RUN, &["/proc/sys is not a cgroup v2 directory", &format!("cgroup v2 is mounted at {root}")])
}

#[test]
fn cgroup_root_that_is_none() -> Result<()> {
    let reason = "/proc/sys is not a cgroup v2 directory: no cgroup v2 file system is mounted there";
    let remedy = format!("one is mounted at {}", cgroup::root()?.display());
    said(&mut observer(&[], &[&RUN[..], &["--cgroup-root", "/proc/sys"]].concat())?)?
        .is(COULD_NOT_RUN, &[reason, &remedy])
}

#[test]
fn invalid_proc_root() -> Result<()> {
    let reason = "/sys/self/mountinfo cannot be read: No such file or directory";
    let remedy = "the observer needs the host's proc file system (--proc-root)";
    said(&mut observer(&[], &[&RUN[..], &["--proc-root", "/sys"]].concat())?)?.is(COULD_NOT_RUN, &[reason, remedy])?;
    said(&mut observer(&NOBODY, &["check", "--proc-root", "/sys"])?)?
        .is(COULD_NOT_RUN, &[reason, remedy, "the node cannot be scanned"])
}

#[test]
fn proc_that_hides_processes() -> Result<()> {
    let place = [&HIDDEN[..], &as_nobody_with("+bpf,+perfmon,+net_admin")].concat();
    let remedy = "sidecars of other users are invisible without CAP_SYS_PTRACE";
    said(&mut observer(&place, &["check"])?)?
        .is(0, &["note  proc is mounted with hidepid=", remedy, "Result: `observer run` works here."])
}

#[test]
fn proc_that_hides_processes_in_vain() -> Result<()> {
    let place = [&HIDDEN[..], &as_nobody_with("+sys_ptrace")].concat();
    said(&mut observer(&place, &["check"])?)?
        .is(COULD_NOT_RUN, &["ok    proc is mounted with hidepid=", "CAP_SYS_PTRACE sees through it"])
}

#[test]
fn port_already_taken() -> Result<()> {
    let other = TcpListener::bind("127.0.0.1:0")?;
    let address = other.local_addr()?.to_string();
    let reason = format!("cannot listen on {address}: the address is taken by another process");
    said(&mut observer(&[], &["run", "--listen", &address])?)?
        .is(COULD_NOT_RUN, &[&reason, "`ss -ltnp` names it", "choose another with --listen"])
}

#[test]
fn address_of_another_machine() -> Result<()> {
    let reason = "cannot listen on 192.0.2.1:9469: this machine has no such address";
    said(&mut observer(&[], &["run", "--listen", "192.0.2.1:9469"])?)?
        .is(COULD_NOT_RUN, &[reason, "or 0.0.0.0, with --listen"])
}

#[test]
fn configuration_that_cannot_be_read() -> Result<()> {
    let scratch = Scratch::create("unreadable")?;
    let secret = scratch.file("secret.toml", "")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000))?;
    let directory = scratch.0.to_string_lossy();
    for (path, reason) in [
        (secret.as_str(), "Permission denied"),
        ("/no-such-directory/observer.toml", "No such file or directory"),
        (&*directory, "Is a directory"),
    ] {
        for command in ["run", "check", "snapshot"] {
            said(&mut observer(&NOBODY, &[command, "--config", path])?)?.is(
                WRONG_USAGE,
                &[
                    &format!("configuration file {path} cannot be read: {reason}"),
                    "check --config and the file's permissions",
                ],
            )?;
        }
    }
    Ok(())
}

#[test]
fn invalid_configuration() -> Result<()> {
    let scratch = Scratch::create("wrong")?;
    for (name, text, place, problem) in [
        ("syntax", "log = \"info\"\ntcp_ports = [25\n", ":2:", "tcp_ports: unclosed array"),
        ("unknown-key", "\nintervall = \"10s\"\n", ":2:1: ", "intervall: unknown field `intervall`, expected one of"),
        (
            "unknown-in-table",
            "[[workload]]\nnam = \"x\"\n",
            ":2:1: ",
            "workload.nam: unknown field `nam`, expected one of",
        ),
        ("wrong-type", "interval = 10\n", ":1:12: ", "interval: invalid type: integer `10`, expected a string"),
        ("emitter", "emit = [\"kafka:x\"]\n", ":1:8: ", "emit: cannot emit to \"kafka:x\""),
        (
            "interval",
            "interval = \"2h\"\n",
            ":1:12: ",
            "interval: invalid duration \"2h\": expected a value between 100ms and 1h",
        ),
        ("no-text", "log = \"\u{0}\"\n", ":1:", "log: "),
    ] {
        let path = scratch.file(&format!("{name}.toml"), text)?;
        let remedy = "the annotated observer.example.toml has every key";
        said(&mut observer(&[], &["run", "--config", &path])?)?
            .is(WRONG_USAGE, &[&format!("{path}{place}"), problem, remedy])?;
    }
    Ok(())
}

#[test]
fn wrong_usage() -> Result<()> {
    for (arguments, thing, remedy) in [
        ("run --emit kafka:x", "cannot emit to \"kafka:x\"", "wavefront+file:PATH"),
        ("run --interval 10", "invalid duration \"10\"", "e.g. 10s"),
        ("run --interval 2h", "invalid duration \"2h\"", "between 100ms and 1h"),
        ("run --listen 94690", "'94690' for '--listen <ADDR:PORT>'", "e.g. 127.0.0.1:9469"),
        ("run --log loud", "'loud' for '--log <LEVEL>'", "error, warn, info, debug, trace"),
        ("run --no-such-option", "'--no-such-option'", "'--help'"),
        ("observe", "unrecognized subcommand 'observe'", "'--help'"),
        ("snapshot --for 0s", "invalid duration \"0s\"", "between 100ms and 1h"),
        ("catalogue --format yaml", "'yaml'", "table, json, tsv"),
        ("", "Usage: observer <COMMAND>", "check"),
    ] {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        said(&mut observer(&[], &arguments)?)?.is(WRONG_USAGE, &[thing, remedy])?;
    }
    Ok(())
}

#[test]
fn help_names_commands_units_and_defaults() -> Result<()> {
    let help = said(&mut observer(&[], &["--help"])?)?;
    help.is(0, &["run Observe", "check Report", "catalogue Print", "snapshot Observe", "--version"])?;
    let help = said(&mut observer(&[], &["run", "--help"])?)?;
    help.is(
        0,
        &[
            "--listen <ADDR:PORT> Where to serve /metrics, /healthz and /readyz: an address or name and a port, a port alone \
             (on 127.0.0.1), or :PORT (on every IPv4 address) [default: 127.0.0.1:9469]",
            "--interval <DURATION> Interval of pushes to the emitters and of their percentiles, 100ms to 1h, e.g. 500ms, 10s, \
             1m; to Wavefront at least 1s [default: 10s]",
            "--scrape-interval <DURATION> Interval of scrapes of each /metrics endpoint of the control plane, 100ms to 1h \
             [default: 10s]",
            "wavefront+http://HOST:PORT[/PATH] (a proxy), wavefront+https://INSTANCE (the service itself) or wavefront+file:PATH",
            "--sidecar-exe <NAME> Executable name of sidecars; may be repeated [default: envoy]",
            "--proc-root <PATH> The host's proc file system [default: /proc]",
            "--cgroup-root <PATH> The host's cgroup v2 file system [default: found in mountinfo]",
            "[default: documented]",
            "[default: info]",
            "[env: OBSERVER_LISTEN=]",
        ],
    )?;
    said(&mut observer(&[], &["snapshot", "--help"])?)?.is(0, &["100ms to 1h [default: 10s]"])
}

#[test]
fn catalogue_has_every_documented_name() -> Result<()> {
    let documented: BTreeSet<&str> = include_str!("../fixtures/documented_names.txt").lines().collect();
    ensure!(documented.len() == 46, "{} documented names", documented.len());

    let table = said(&mut observer(&[], &["catalogue", "--format", "tsv"])?)?;
    table.is(0, &[])?;
    let mut lines = table.out.lines();
    let header = lines.next().context("no header line")?;
    ensure!(header.starts_with("documented_name\tprometheus_name\ttype\tunit\t"), "header {header:?}");
    let columns = header.split('\t').count();
    let mut rows = BTreeSet::new();
    for line in lines {
        let row: Vec<&str> = line.split('\t').collect();
        ensure!(row.len() == columns, "{} columns instead of {columns}: {line:?}", row.len());
        ensure!(!row[1].is_empty() && !row[2].is_empty(), "no name or no type: {line:?}");
        rows.insert((row[0], row[1]));
    }
    let missing: Vec<_> = documented.iter().filter(|name| rows.iter().all(|row| row.0 != **name)).collect();
    ensure!(missing.is_empty(), "the catalogue lacks {missing:?}");

    let document = said(&mut observer(&[], &["catalogue", "--format", "json"])?)?;
    document.is(0, &[])?;
    let document: Vec<Value> = serde_json::from_str(&document.out).context("the catalogue's JSON")?;
    let text = |family: &Value, key: &str| family[key].as_str().unwrap_or_default().to_owned();
    let families: BTreeSet<_> =
        document.iter().map(|family| (text(family, "documented_name"), text(family, "prometheus_name"))).collect();
    let rows: BTreeSet<_> = rows.into_iter().map(|(name, family)| (name.to_owned(), family.to_owned())).collect();
    ensure!(rows == families, "the formats disagree: {:?}", rows.symmetric_difference(&families).collect::<Vec<_>>());
    Ok(())
}

/// Some of them end between two reads of the same process.
#[test]
fn processes_that_vanish_while_they_are_looked_at() -> Result<()> {
    let scratch = Scratch::create("vanish")?;
    let name = format!("vanish-{}", process::id());
    let program = scratch.0.join(&name);
    fs::copy(tools::require("sleep")?, &program)?;
    let mut command = observer(&[], &["snapshot", "--for", "1s", "--format", "json", "--sidecar-exe", &name])?;
    let ended = AtomicBool::new(false);
    let (said, spawned) = thread::scope(|scope| {
        let vanishing = scope.spawn(|| vanish(&program, &ended));
        let said = said(&mut command);
        ended.store(true, Ordering::Relaxed);
        (said, vanishing.join().expect("the loop does not panic"))
    });
    let (said, spawned) = (said?, spawned?);
    println!("{spawned} processes came and went");
    ensure!(spawned > 50, "only {spawned} processes came and went");
    said.is(0, &[])?;
    ensure!(!said.err.contains("panicked") && !said.err.contains("ERROR"), "{}", said.err);
    serde_json::from_str::<Value>(&said.out).context("the snapshot's JSON").map(|_| ())
}

fn vanish(program: &Path, ended: &AtomicBool) -> Result<u64> {
    let mut spawned = 0;
    while !ended.load(Ordering::Relaxed) {
        let mut child = Command::new(program).arg("60").stdin(Stdio::null()).spawn().context("short-lived process")?;
        thread::sleep(Duration::from_micros(spawned * 97 % 3000));
        child.kill()?;
        child.wait()?;
        // The observer needs time to load its programs.
        thread::sleep(Duration::from_millis(3));
        spawned += 1;
    }
    Ok(spawned)
}

/// Returns the observer with nothing in its environment, started through `place`: a command that changes what it finds.
fn observer(place: &[&str], arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(tools::require("timeout")?);
    command.args(["--kill-after", "5", REFUSAL_TIMEOUT]).args(place).arg(tools::observer()?).args(arguments);
    command.env_clear().envs(env::var_os("PATH").map(|path| ("PATH", path))).stdin(Stdio::null());
    Ok(command)
}

fn as_nobody_with(capabilities: &str) -> Vec<&str> {
    [&NOBODY[..], &["--inh-caps", capabilities, "--ambient-caps", capabilities]].concat()
}

/// Makes bpf(2) fail with `error`, for this of its commands or all, as a security module or an old kernel would.
fn refuse_bpf(command: &mut Command, only: Option<u32>, error: i32) {
    // Offsets in struct seccomp_data; the lower half of an argument comes first on little-endian machines.
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    let code = |code: u32| u16::try_from(code).expect("codes of BPF instructions have 16 bits");
    let load =
        |offset| libc::sock_filter { code: code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), jt: 0, jf: 0, k: offset };
    let skip_unless = |value, instructions| libc::sock_filter {
        code: code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
        jt: 0,
        jf: instructions,
        k: value,
    };
    let give = |answer| libc::sock_filter { code: code(libc::BPF_RET | libc::BPF_K), jt: 0, jf: 0, k: answer };
    let bpf = u32::try_from(libc::SYS_bpf).expect("numbers of system calls are small");
    let refusal = give(libc::SECCOMP_RET_ERRNO | error.cast_unsigned());
    let mut filter = match only {
        None => vec![load(NUMBER), skip_unless(bpf, 1), refusal],
        Some(only) => {
            vec![load(NUMBER), skip_unless(bpf, 3), load(FIRST_ARGUMENT), skip_unless(only, 1), refusal]
        }
    };
    filter.push(give(libc::SECCOMP_RET_ALLOW));
    // SAFETY: the closure makes plain system calls on memory that it owns, and allocates only where one fails.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
            let forbidden = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0;
            if forbidden { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
}

/// Exit and output of a child process.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(command: &mut Command) -> Result<Said> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(Said { code: output.status.code(), out, err })
}

impl Said {
    /// Fails unless it ended with `code` and its output has each of `parts`, across line breaks, and no cause twice.
    fn is(&self, code: i32, parts: &[&str]) -> Result<()> {
        let Self { out, err, .. } = self;
        ensure!(self.code == Some(code), "exit code {:?} instead of {code}:\n{out}\n{err}", self.code);
        let all = words(&format!("{out}\n{err}"));
        for part in parts {
            ensure!(all.contains(&words(part)), "{part:?} is not said:\n{out}\n{err}");
        }
        let repeated = err.lines().find(|line| line.matches("(os error ").count() > 1);
        ensure!(repeated.is_none(), "a cause is said twice: {repeated:?}");
        Ok(())
    }
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A directory that everybody may read, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn create(name: &str) -> Result<Self> {
        let directory = env::temp_dir().join(format!("mesh-places-{}-{name}", process::id()));
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        Ok(Self(directory))
    }

    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in the temporary directory is harmless.
        let _ = fs::remove_dir_all(&self.0);
    }
}
