//! `multivio plans`: what plans there are, and which workspace has which. What is changed holds from the next write on.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;

use super::{Failure, Screen};
use crate::{
    ai::usage::{TICKS_PER_USD, usd},
    audit::{self, Action},
    db,
    ids::TenantId,
    patreon::tiers,
    plans::{
        Source,
        store::{self, Defined, Given, Limits},
    },
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  multivio plans define free --connections 3 --posts-per-month 30 --ai-usd-per-month 1
  multivio plans default free
  multivio plans tier 1234567 supporter
  multivio plans set tnt_01988f6e... unlimited --until 2027-01-01T00:00:00Z")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All plans with their limits, and the tiers on Patreon that give them
    List,
    /// Make a plan, or give one other limits; what is left out is not limited
    Define(DefineArguments),
    /// Choose the plan of every workspace that was given none
    Default {
        /// The plan, as `plans list` names it
        plan: String,
    },
    /// Give a workspace a plan, before any that a membership gives
    Set {
        /// The workspace
        #[arg(value_name = "tnt_...")]
        workspace: TenantId,
        /// The plan, as `plans list` names it
        plan: String,
        /// When it ends by itself; without it, when it is taken back
        #[arg(long, value_name = "TIME")]
        until: Option<DateTime<Utc>>,
    },
    /// Say what a tier on Patreon is worth; from each member's next look on
    Tier {
        /// The tier's id at Patreon
        tier: String,
        /// The plan, as `plans list` names it; without one, the tier gives none
        plan: Option<String>,
    },
    /// Take back what `plans set` gave
    Unset {
        /// The workspace
        #[arg(value_name = "tnt_...")]
        workspace: TenantId,
    },
}

#[derive(Debug, Args)]
struct DefineArguments {
    /// Small letters, digits, - and _
    #[arg(value_parser = name)]
    plan: String,
    /// Of the plans that one membership gives, the one with the highest rank counts [default: as it is, 0 at first]
    #[arg(long)]
    rank: Option<i32>,
    /// Accounts that are connected
    #[arg(long, value_parser = amount())]
    connections: Option<i64>,
    /// Posts in a calendar month (UTC), one for each account they go to
    #[arg(long, value_parser = amount())]
    posts_per_month: Option<i64>,
    /// Bytes of all uploads together
    #[arg(long, value_parser = amount())]
    media_bytes: Option<i64>,
    /// Bytes of one upload
    #[arg(long, value_parser = amount())]
    upload_bytes: Option<i64>,
    /// Seconds of one video
    #[arg(long, value_parser = amount())]
    upload_seconds: Option<i64>,
    /// US dollars for language models in a calendar month (UTC)
    #[arg(long, value_parser = dollars)]
    ai_usd_per_month: Option<i64>,
}

fn amount() -> clap::builder::RangedI64ValueParser {
    clap::value_parser!(i64).range(0..)
}

fn name(text: &str) -> Result<String, String> {
    let is_word = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if is_word && begins && text.len() <= 40 {
        Ok(text.to_owned())
    } else {
        Err("up to 40 small letters, digits, - and _, beginning with a letter or a digit".to_owned())
    }
}

/// In ticks.
fn dollars(text: &str) -> Result<i64, String> {
    let needs = "it needs an amount of US dollars, such as 5 or 0.50";
    let dollars: f64 = text.parse().map_err(|_error| needs.to_owned())?;
    // A million dollars in ticks are far within the numbers of the database.
    if (0.0..=1e6).contains(&dollars) { Ok((dollars * TICKS_PER_USD).round() as i64) } else { Err(needs.to_owned()) }
}

pub async fn run(arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let config = super::config()?;
    let db = db::pool(&config.database, "multivio plans")?;
    if matches!(arguments.command, Command::List) {
        let plans = store::list(&db).await?.into_iter();
        let tiers = tiers::list(&db).await?;
        return list(screen, &plans.map(|plan| Line::new(plan, &tiers)).collect::<Vec<_>>());
    }
    let mut tx = db.begin().await?;
    let done = change(&mut tx, arguments.command).await?;
    tx.commit().await?;
    screen.show(&json!({ "done": done }), || done.clone())
}

/// Says what was done.
async fn change(tx: &mut PgConnection, command: Command) -> Result<String, Failure> {
    let no_plan = |plan: &str| {
        Failure::failed(format!("there is no plan \"{plan}\"")).remedy("`multivio plans list` has all there are.")
    };
    let record = async |tx: &mut PgConnection, tenant, action, target: String, details| {
        audit::record_by_operator(tx, tenant, action, target, details).await
    };
    match command {
        Command::List => Ok(String::new()),
        Command::Define(wish) => {
            let (plan, limits) = (wish.plan.clone(), wish.limits());
            store::define(&mut *tx, &plan, wish.rank, limits).await?;
            record(tx, None, Action::PlanDefined, plan.clone(), json!({ "rank": wish.rank, "limits": limits })).await?;
            Ok(format!("The plan \"{plan}\" has these limits from now on."))
        }
        Command::Default { plan } => {
            if !store::make_default(&mut *tx, &plan).await? {
                return Err(no_plan(&plan));
            }
            record(tx, None, Action::PlanDefined, plan.clone(), json!({"default": true})).await?;
            Ok(format!("Whoever was given no plan has \"{plan}\" from now on."))
        }
        Command::Set { workspace, plan, until } => {
            match store::give(&mut *tx, workspace, Source::Operator, &plan, until).await? {
                Given::Done => {}
                Given::NoPlan => return Err(no_plan(&plan)),
                Given::NoWorkspace => return Err(Failure::failed(format!("there is no workspace {workspace}"))),
            }
            let details = json!({"plan": plan, "until": until});
            record(tx, Some(workspace), Action::PlanGiven, workspace.to_string(), details).await?;
            let until = until.map_or_else(|| "until it is taken back".to_owned(), |until| format!("until {until}"));
            Ok(format!("{workspace} has the plan \"{plan}\" {until}."))
        }
        Command::Tier { tier, plan: Some(plan) } => {
            if !tiers::set(&mut *tx, &tier, &plan).await? {
                return Err(no_plan(&plan));
            }
            record(tx, None, Action::PlanDefined, tier.clone(), json!({"tier": tier, "plan": plan})).await?;
            Ok(format!("The tier {tier} is worth the plan \"{plan}\"."))
        }
        Command::Tier { tier, plan: None } => {
            if !tiers::unset(&mut *tx, &tier).await? {
                return Err(Failure::failed(format!("the tier {tier} gives no plan")));
            }
            record(tx, None, Action::PlanDefined, tier.clone(), json!({"tier": tier, "plan": null})).await?;
            Ok(format!("The tier {tier} gives no plan from now on."))
        }
        Command::Unset { workspace } => {
            if !store::take_back(&mut *tx, workspace, Source::Operator).await? {
                return Err(Failure::failed(format!("{workspace} was given no plan")));
            }
            record(tx, Some(workspace), Action::PlanTakenBack, workspace.to_string(), json!({})).await?;
            Ok(format!("{workspace} has what a membership gives it, or the default plan."))
        }
    }
}

impl DefineArguments {
    const fn limits(&self) -> Limits {
        Limits {
            connections: self.connections,
            posts_per_month: self.posts_per_month,
            media_bytes: self.media_bytes,
            upload_bytes: self.upload_bytes,
            upload_seconds: self.upload_seconds,
            ai_ticks_per_month: self.ai_usd_per_month,
        }
    }
}

/// A plan, and which memberships give it.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    plan: Defined,
    /// Ids at Patreon.
    patreon_tiers: Vec<String>,
}

impl Line {
    /// `tiers` are those of all plans, each with its plan's name.
    fn new(plan: Defined, tiers: &[(String, String)]) -> Self {
        let own = tiers.iter().filter(|(_, worth)| *worth == plan.name);
        let patreon_tiers = own.map(|(tier, _)| tier.clone()).collect();
        Self { plan, patreon_tiers }
    }
}

fn list(screen: Screen, lines: &[Line]) -> Result<(), Failure> {
    screen.show(&lines, || {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "PLAN",
            "RANK",
            "GIVEN TO",
            "CONNECTIONS",
            "POSTS",
            "MEDIA BYTES",
            "UPLOAD BYTES",
            "UPLOAD S",
            "AI $",
            "PATREON TIERS",
        ]);
        let none = || "-".to_owned();
        for Line { plan, patreon_tiers } in lines {
            let most = |limit: Option<i64>| limit.map_or_else(none, |most| most.to_string());
            let Limits { connections, posts_per_month, media_bytes, upload_bytes, upload_seconds, .. } = plan.limits;
            let name = if plan.is_default { format!("{} (default)", plan.name) } else { plan.name.clone() };
            let dollars = plan.limits.ai_ticks_per_month.map(|ticks| format!("{:.2}", usd(ticks)));
            let mut row = vec![name, plan.rank.to_string(), plan.workspaces.to_string()];
            row.extend([connections, posts_per_month, media_bytes, upload_bytes, upload_seconds].map(most));
            row.push(dollars.unwrap_or_else(none));
            row.push(if patreon_tiers.is_empty() { none() } else { patreon_tiers.join(", ") });
            table.add_row(row);
        }
        table.to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_money_are_read_to_the_tick_and_nonsense_is_refused() {
        assert_eq!(dollars("5"), Ok(50_000_000_000));
        assert_eq!(dollars("0.01"), Ok(100_000_000));
        for wrong in ["-1", "five", "NaN", "inf", "1e9"] {
            assert!(dollars(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_plan_is_named_as_the_table_wants_it() {
        for good in ["free", "pro-2", "9_lives"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        for wrong in ["", "-free", "Free", "fr ee", &"a".repeat(41)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
