//! Redis: does it answer, is it new enough, and does it keep what it is given.

use std::{collections::HashMap, time::Duration};

use redis::AsyncConnectionConfig;

use super::Line;
use crate::{config::RedisConfig, jobs::belt, telemetry::chain};

const PATIENCE: Duration = Duration::from_secs(5);
const OLDEST: u32 = 7;

pub async fn look(config: &RedisConfig) -> Vec<Line> {
    match tokio::time::timeout(PATIENCE, info(config)).await {
        Ok(Ok(info)) => judge(&info, config.trust()),
        Ok(Err(error)) => vec![refused(config, chain(&error))],
        Err(_elapsed) => vec![away(format!("no answer within {} s", PATIENCE.as_secs()))],
    }
}

fn refused(config: &RedisConfig, error: String) -> Line {
    // Said by the TLS library, which has no types for it that come this far.
    if !error.to_lowercase().contains("certificate") {
        return away(error);
    }
    let remedy = match config.authority {
        Some(_) => {
            "Set REDIS_CA_CERT to the authority that signed the server's certificate, and name the host in REDIS_URL as \
             the certificate has it"
        }
        None => "Set REDIS_CA_CERT to the authority that signed the server's certificate, where that is no public one",
    };
    Line::problem("redis", error, remedy)
}

fn away(error: String) -> Line {
    Line::problem("redis", error, "Start the server, or correct REDIS_URL (`multivio up` starts a private one)")
}

async fn info(config: &RedisConfig) -> redis::RedisResult<HashMap<String, String>> {
    let client = belt::client(config)?;
    let settings =
        AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
    let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
    // INFO rather than CONFIG GET, which managed servers forbid.
    let text: String = redis::cmd("INFO").query_async(&mut connection).await?;
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    Ok(pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
}

fn judge(info: &HashMap<String, String>, trust: &str) -> Vec<Line> {
    let of = |key: &str| info.get(key).map_or("", String::as_str);
    let version = of("redis_version");
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    let mut lines = vec![if major >= OLDEST {
        Line::ok("redis", format!("version {version}, {trust}"))
    } else {
        Line::problem("redis", format!("version {version}"), format!("Upgrade it to {OLDEST} or newer"))
    }];
    lines.push(match of("maxmemory_policy") {
        "noeviction" => Line::ok("redis memory", "noeviction"),
        "" => Line::warning("redis memory", "the eviction policy is hidden", "Make sure that it is noeviction"),
        // E6: an evicted list looks like an empty one.
        policy => Line::problem(
            "redis memory",
            format!("maxmemory-policy is {policy}: waiting jobs would be dropped from the belt"),
            "Set maxmemory-policy to noeviction",
        ),
    });
    let role = of("role");
    if !matches!(role, "" | "master") {
        lines.push(Line::problem("redis role", format!("this server is a {role}"), "Point REDIS_URL at the primary"));
    }
    // Nothing is lost without it: the ledger is the truth, and the belt is rebuilt.
    let appends = of("aof_enabled") == "1";
    lines.push(Line::ok(
        "redis persistence",
        if appends { "append-only file" } else { "snapshots or none; the belt is rebuilt from the ledger" },
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    fn verdicts(pairs: &[(&str, &str)]) -> Vec<Verdict> {
        let info = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        judge(&info, "not encrypted").iter().map(|line| line.verdict).collect()
    }

    #[test]
    fn an_old_server_a_replica_and_one_that_forgets_are_problems() {
        use Verdict::{Ok, Problem, Warning};
        assert_eq!(verdicts(&[("redis_version", "7.0.15"), ("maxmemory_policy", "noeviction")]), [Ok, Ok, Ok]);
        assert_eq!(
            verdicts(&[("redis_version", "6.2.1"), ("maxmemory_policy", "allkeys-lru")]),
            [Problem, Problem, Ok]
        );
        assert_eq!(verdicts(&[("redis_version", "8.0.0"), ("role", "slave")]), [Ok, Warning, Problem, Ok]);
    }
}
