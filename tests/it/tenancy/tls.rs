//! Postgres by TLS: who it is has to be proved, and what is wrong is said.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use multivio::local::Account;
use secrecy::ExposeSecret;
use sqlx::PgPool;

use crate::harness::{App, Servers};

/// An authority in this folder, and a certificate for 127.0.0.1 signed by it.
pub(super) fn certificates(folder: &Path) {
    let openssl = |args: &str| {
        let made = Command::new("openssl").args(args.split(' ')).current_dir(folder).output().expect("openssl runs");
        assert!(made.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&made.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=authority -days 2"));
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -extfile names -days 2");
}

/// Lets the server offer TLS by what [`certificates`] made there, once it is told to. Returns its folder.
pub(super) async fn give_certificate(servers: &Servers, folder: &Path) -> PathBuf {
    let data = servers.control().await.folder().join("postgres/data");
    for name in ["server.crt", "server.key"] {
        let file = data.join(name);
        std::fs::copy(folder.join(name), &file).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        if let Some(account) = Account::for_servers().unwrap() {
            account.give(&file).unwrap();
        }
    }
    data
}

pub(super) async fn offer_tls(db: &PgPool) {
    sqlx::raw_sql("alter system set ssl = on").execute(db).await.unwrap();
    sqlx::raw_sql("select pg_reload_conf()").execute(db).await.unwrap();
    crate::harness::eventually(crate::publish::SOON, "the server to offer TLS", || async {
        let on: String = sqlx::query_scalar("select current_setting('ssl')").fetch_one(db).await.ok()?;
        (on == "on").then_some(())
    })
    .await;
}

/// Connections of our programs that are not encrypted.
pub(super) async fn plain(db: &PgPool) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_stat_ssl s join pg_stat_activity a using (pid) \
         where a.application_name like 'multivio%' and not s.ssl",
    )
    .fetch_one(db)
    .await
    .unwrap()
}

/// What `multivio check` says of a server, with its remedy.
pub(super) async fn check(app: &App, of: &str) -> String {
    let (_, said) = app.cli(&["check"]).await;
    // What is said at the end comes by another stream, and may come between.
    let lines: Vec<&str> = said.lines().filter(|line| !line.contains("problem(s) to solve")).collect();
    let at = lines.iter().position(|line| line.contains(of));
    let at = at.unwrap_or_else(|| panic!("nothing about the {of} in:\n{said}"));
    lines[at..].iter().take(2).copied().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_server_is_believed_by_its_certificate_and_a_wrong_one_is_named() {
    let servers = Servers::private().await;
    let mut app = App::on(&servers).await;
    let (right, wrong) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(right.path());
    certificates(wrong.path());
    let data = give_certificate(&servers, right.path()).await;
    let url = servers.database_url(app.db.name()).expose_secret().to_owned();
    let url = |query: String| format!("{url}?{query}");
    let verified = |folder: &Path| url(format!("sslmode=verify-full&sslrootcert={}/ca.crt", folder.display()));
    let check = async |app: &mut App, url: String| {
        app.set("DATABASE_URL", url);
        check(app, "database").await
    };

    // A server without TLS is not trusted with a password.
    let said = check(&mut app, verified(right.path())).await;
    assert!(said.contains("TLS") && said.contains("sslmode"), "{said}");
    offer_tls(&app.pool).await;

    let said = check(&mut app, verified(right.path())).await;
    assert!(said.contains("PostgreSQL") && said.contains("TLSv1"), "{said}");
    // Every kind of session comes by it.
    let api = app.api().await;
    assert_eq!(api.get("/api/v1/posts").await.0, 200);
    assert_eq!(plain(&app.pool).await, 0);
    drop(api);

    let said = check(&mut app, verified(wrong.path())).await;
    assert!(said.contains("certificate") && said.contains("sslrootcert"), "{said}");
    let said = check(&mut app, url("sslmode=verify-full&sslrootcert=/nowhere/ca.crt".into())).await;
    assert!(said.contains("sslrootcert"), "{said}");
    // The right authority, another name than the certificate's.
    let said = check(&mut app, verified(right.path()).replace("127.0.0.1", "localhost")).await;
    assert!(said.contains("certificate") && said.contains("host as the certificate has it"), "{said}");

    let rules = std::fs::read_to_string(data.join("pg_hba.conf")).unwrap();
    let rules: String = rules.lines().map(|line| format!("{}\n", line.replacen("host ", "hostssl ", 1))).collect();
    std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
    sqlx::raw_sql("select pg_reload_conf()").execute(&app.pool).await.unwrap();
    crate::harness::eventually(crate::publish::SOON, "plain connections to be refused", || async {
        let said = check(&mut App::on(&servers).await, url("sslmode=disable".into())).await;
        said.contains("encrypted connections only").then_some(())
    })
    .await;
}
