//! Servers whose certificate a private authority has signed, which is named by a setting: managed ones give it so.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use multivio::jobs::{Queue, belt};
use secrecy::ExposeSecret;

use super::tls::{certificates, check, give_certificate, offer_tls, plain};
use crate::harness::{App, Servers, eventually};

const SOON: Duration = crate::publish::SOON;

/// As it arrives where line ends cannot.
fn authority(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("ca.crt")).unwrap().replace('\n', "\\n")
}

#[tokio::test]
async fn a_database_is_believed_by_the_authority_that_the_setting_names_and_by_no_other() {
    let servers = Servers::private().await;
    let mut app = App::on(&servers).await;
    let (right, wrong) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(right.path());
    certificates(wrong.path());
    give_certificate(&servers, right.path()).await;
    offer_tls(&app.pool).await;
    let url = servers.database_url(app.db.name()).expose_secret().to_owned();

    // As a managed database's address says it, which by itself would take any certificate.
    for query in ["", "?sslmode=require", "?sslmode=verify-ca"] {
        app.set("DATABASE_URL", format!("{url}{query}"));
        app.set("DATABASE_CA_CERT", authority(right.path()));
        let said = check(&app, "database").await;
        assert!(said.contains("TLSv1") && said.contains("by DATABASE_CA_CERT"), "{query}: {said}");
        app.set("DATABASE_CA_CERT", authority(wrong.path()));
        let said = check(&app, "database").await;
        assert!(said.contains("certificate") && said.contains("Set DATABASE_CA_CERT"), "{query}: {said}");
        let (done, said) = app.cli(&["migrate", "--wait", "0"]).await;
        assert!(!done && said.contains("certificate"), "{query}: {said}");
    }
    // The host is asked for by its name, unless the address says that it need not be.
    app.set("DATABASE_CA_CERT", authority(right.path()));
    app.set("DATABASE_URL", format!("{}?sslmode=require", url.replace("127.0.0.1", "localhost")));
    assert!(check(&app, "database").await.contains("as the certificate has it"));
    app.set("DATABASE_URL", format!("{}?sslmode=verify-ca", url.replace("127.0.0.1", "localhost")));
    assert!(check(&app, "database").await.contains("by any name by DATABASE_CA_CERT"));

    // Every kind of session comes by it: where nothing else is taken, everything works.
    app.set("DATABASE_URL", format!("{url}?sslmode=prefer"));
    let (done, said) = app.cli(&["migrate"]).await;
    assert!(done, "{said}");
    let api = app.api().await;
    let worker = app.worker(Queue::Ops).await;
    assert_eq!(api.get("/api/v1/posts").await.0, 200);
    assert_eq!(plain(&app.pool).await, 0);
    drop((api, worker));
}

/// Ends with the test.
struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A Redis that speaks TLS and nothing else.
fn redis(folder: &Path, port: u16) -> Redis {
    let words = format!(
        "--port 0 --tls-port {port} --bind 127.0.0.1 --tls-cert-file server.crt --tls-key-file server.key \
         --tls-ca-cert-file ca.crt --tls-auth-clients no --maxmemory-policy noeviction"
    );
    let mut command = Command::new("redis-server");
    command.args(words.split_whitespace()).args(["--save", ""]).current_dir(folder).stdout(Stdio::null());
    Redis(command.spawn().expect("redis-server runs"))
}

#[tokio::test]
async fn a_redis_is_believed_by_the_authority_that_the_setting_names_and_by_no_other() {
    let mut app = App::new().await;
    let (right, wrong) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(right.path());
    certificates(wrong.path());
    let port = multivio::local::free_port().unwrap();
    let _redis = redis(right.path(), port);
    app.set("REDIS_URL", format!("rediss://127.0.0.1:{port}"));
    app.set("REDIS_CA_CERT", authority(right.path()));
    let connect = async || belt::client(&app.config().redis).unwrap().get_multiplexed_async_connection().await.ok();
    let mut control = eventually(SOON, "Redis to answer by TLS", connect).await;
    let said = check(&app, "redis ").await;
    assert!(said.contains("verified by REDIS_CA_CERT"), "{said}");

    // The belt of the API, and the pops of a worker.
    let api = app.api().await;
    let worker = app.worker(Queue::Ops).await;
    let (status, health) = api.get("/health").await;
    assert_eq!(status, 200, "{health}");
    eventually(SOON, "a worker to wait at the belt", || {
        let mut control = control.clone();
        async move {
            let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut control).await.ok()?;
            clients.contains("cmd=blmpop").then_some(())
        }
    })
    .await;
    drop((api, worker));

    for other in [authority(wrong.path()), String::new()] {
        app.set("REDIS_CA_CERT", other);
        assert!(belt::client(&app.config().redis).unwrap().get_multiplexed_async_connection().await.is_err());
        let said = check(&app, "redis ").await;
        assert!(said.contains("certificate") && said.contains("Set REDIS_CA_CERT"), "{said}");
    }
    let _: String = redis::cmd("PING").query_async(&mut control).await.unwrap();
}
