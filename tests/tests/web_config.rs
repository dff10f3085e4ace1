//! An observer whose pages need TLS, a client certificate and a password: its own commands read it like any client that has
//! them, and say what is missing to others.

use std::{
    fs,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    tools,
    wait::wait_until,
    web::{TLS, Web},
};

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// bcrypt of `open:sesame`.
const USERS: &str = "basic_auth_users: {alice: '$2b$04$abcdefghijklmnopqrstuu2GbQLdjwBFdH8CcOE866nGziodmvO8K'}\n";
const CLIENTS: &str = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: clients.crt\n";

#[test]
fn commands_read_an_observer_that_demands_everything() -> Result<()> {
    let web = Web::start("all", &format!("{TLS}{CLIENTS}{USERS}"), &[])?;
    let (file, certificate, key) = (web.path("web.yml"), web.path("client.crt"), web.path("client.key"));
    let (right, wrong) = (password(&web, "right", "open:sesame")?, password(&web, "wrong", "sesame")?);
    let tls = ["--web-config-file", &file];
    let certificate = ["--web-cert-file", &certificate, "--web-key-file", &key];
    let (right, wrong) = (["--web-basic-auth-file", &right], ["--web-basic-auth-file", &wrong]);
    let everything = [&tls[..], &certificate, &right].concat();
    wait_read(&web, &everything)?;
    for (arguments, missing) in [
        (vec![], "--web-config-file"),
        (right.to_vec(), "--web-config-file"),
        (tls.to_vec(), "--web-cert-file"),
        ([&tls[..], &right].concat(), "--web-cert-file"),
        ([&tls[..], &certificate].concat(), "--web-basic-auth-file"),
        ([&tls[..], &certificate, &wrong].concat(), "--web-basic-auth-file"),
    ] {
        ensure_unread(&web, &arguments, missing)?;
    }
    let listens = format!("an observer listens on {} now", web.address());
    // The handshake shows that it is an observer; only its pages need a password.
    for arguments in [everything, [&tls[..], &certificate].concat()] {
        let report = check(&web, &arguments)?;
        ensure!(report.contains(&listens), "{arguments:?}: {report}");
    }
    for (arguments, said) in [(tls.to_vec(), "--web-cert-file"), (vec![], "taken by another process")] {
        let report = check(&web, &arguments)?;
        ensure!(report.contains("cannot work here") && report.contains(said), "{arguments:?}: {report}");
    }
    web.end()
}

#[test]
fn a_password_suffices_over_plain_http() -> Result<()> {
    let web = Web::start("users", USERS, &[])?;
    wait_read(&web, &["--web-basic-auth-file", &password(&web, "right", "open:sesame")?])?;
    ensure_unread(&web, &[], "--web-basic-auth-file")?;
    let report = check(&web, &[])?;
    ensure!(report.contains("an observer listens on"), "{report}");
    web.end()
}

#[test]
fn only_the_certificate_of_the_web_configuration_is_accepted() -> Result<()> {
    let web = Web::start("tls", TLS, &[])?;
    wait_read(&web, &["--web-config-file", &web.path("web.yml")])?;
    // Another one of the same authority, and without the key, of which a client has no need.
    let other = web.authority().server("observer.example.com")?;
    fs::write(web.path("other.crt"), other.certificate)?;
    fs::write(web.path("other.yml"), "tls_server_config: {cert_file: other.crt}\n")?;
    let arguments = ["--web-config-file", &web.path("other.yml")];
    ensure_unread(&web, &arguments, "with the TLS of its web configuration")?;
    fs::copy(web.path("server.crt"), web.path("other.crt"))?;
    wait_read(&web, &arguments)?;
    web.end()
}

/// Waits until the catalogue is read with these arguments, and has figures of the running observer.
fn wait_read(web: &Web, arguments: &[&str]) -> Result<()> {
    wait_until("the catalogue of a running observer", START_TIMEOUT, || {
        let output = catalogue(web, arguments)?;
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success() && said.contains("no data: "), "{said}{error}{}", web.log());
        Ok(())
    })
}

/// Checks that the catalogue is not read with these arguments, and that the error says what is missing.
fn ensure_unread(web: &Web, arguments: &[&str], missing: &str) -> Result<()> {
    let output = catalogue(web, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains(missing), "{arguments:?}: {said}");
    Ok(())
}

fn catalogue(web: &Web, arguments: &[&str]) -> Result<Output> {
    let own = ["catalogue", "--live", "--listen", &web.address().to_string()];
    Command::new(tools::observer()?).args(own).args(arguments).output().context("observer catalogue")
}

/// Returns the report of `observer check`.
fn check(web: &Web, arguments: &[&str]) -> Result<String> {
    let own = ["check", "--listen", &web.address().to_string()];
    let output = Command::new(tools::observer()?).args(own).args(arguments).output().context("observer check")?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Returns the path of a file with this password.
fn password(web: &Web, file: &str, password: &str) -> Result<String> {
    fs::write(web.path(file), format!("alice:{password}\n"))?;
    Ok(web.path(file))
}
