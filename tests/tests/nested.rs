//! A node in a pid namespace of its own, like those of kind, k3d and minikube: this program runs again in
//! one, with a proc file system of its own, and everything that it starts is there too.

use std::{
    env,
    process::{Command, ExitCode},
    thread::sleep,
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    cases,
    mesh::Family,
    net::finish,
    pair::{Expected, Pair},
    sidecar::Options,
    tools,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// Set in the namespace.
const INSIDE: &str = "MESH_OBSERVER_NESTED";

fn main() -> ExitCode {
    if env::var_os(INSIDE).is_some() {
        return cases::run(fixture, cases![requests_and_bytes_are_exact, probes_are_not_requests, check_says_so]);
    }
    let program = env::current_exe().expect("its own path");
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(program).args(env::args_os().skip(1));
    match command.env(INSIDE, "1").status() {
        Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
        Err(error) => {
            eprintln!("unshare cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

fn fixture() -> Result<Pair> {
    let with_agent = Options { agent: Some("sidecar"), ..Options::default() };
    Pair::with(with_agent.clone(), with_agent)
}

fn requests_and_bytes_are_exact(pair: &mut Pair) -> Result<String> {
    pair.http_and_tcp()
}

/// The kubelet's probes through pilot-agent come from Envoy's cgroup, user and address, and are not requests of the
/// mesh.
fn probes_are_not_requests(pair: &mut Pair) -> Result<String> {
    pair.check(Expected::both(2), |pair| {
        for (family, source) in BOTH.iter().zip(["127.0.0.6", "::6"]) {
            ensure!(pair.curl(&[&pair.url(*family, "/bytes/5")])? == "200");
            let address = std::net::SocketAddr::new(pair.server.ip(*family), 8080);
            for _ in 0..5 {
                let mut command = pair.sidecars[1].agent_command("curl")?;
                command.args(["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "--interface", source]);
                ensure!(finish(command.arg(format!("http://{address}/bytes/7")), "")? == "200");
            }
        }
        sleep(Duration::from_millis(300));
        Ok(())
    })
}

fn check_says_so(pair: &mut Pair) -> Result<String> {
    let said = finish(Command::new(tools::observer()?).args(["check", "--sidecar-exe", &pair.mesh.executable()]), "")?;
    let note = "note  process ids are those of a nested pid namespace";
    ensure!(said.contains(note) && said.contains("works here"), "{said}");
    let log = pair.observer()?.log();
    ensure!(log.contains("those of a nested pid namespace"), "{log}");
    Ok(note.to_owned())
}
