//! `multivio bench idle`: what each program costs when it has nothing to do, and how soon it can have something.

use std::time::Duration;

use super::{
    report::{Figure, Target},
    stage::{self, Ground, Program, Stage},
};
use crate::{
    cli::{Failure, working::spinner},
    jobs::Queue,
};

const TARGET_MB: f64 = 40.0;
const TARGET_SECONDS: f64 = 1.0;
/// After the start, until everything that begins with it has happened once.
const SETTLES_IN: Duration = Duration::from_secs(5);

pub async fn run(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let ground = stage.ground("idle").await?;
    let figures = spinner("starting each program and leaving it alone", measure(stage, &ground)).await?;
    stage.clear(ground).await?;
    Ok(figures)
}

async fn measure(stage: &Stage, ground: &Ground) -> Result<Vec<Figure>, Failure> {
    let mut figures = Vec::new();
    let mut programs = Vec::new();
    let address = stage::free_address()?;
    let mut api = stage.program(ground, "multivio", &["api", "--listen", &address.to_string()])?;
    let ready = api.ready(async || stage::is_ready(address).await).await?;
    figures.push(start("api", ready));
    programs.push(("api".to_owned(), api));
    for queue in Queue::ALL {
        let mut worker = stage.program(ground, &format!("multivio-{queue}"), &[])?;
        let ready = worker.ready(async || is_registered(ground, *queue).await).await?;
        figures.push(start(queue.as_str(), ready));
        programs.push((queue.to_string(), worker));
    }
    tokio::time::sleep(SETTLES_IN).await;
    for (name, program) in &mut programs {
        for (place, megabytes) in program.memory_mb().into_iter().enumerate() {
            let process = if place == 0 && name != "api" { "its parent, " } else { "" };
            let of = format!("idle memory of {process}{name}");
            figures.push(Figure::new(of, megabytes, "MB").target(Target::AtMost(TARGET_MB)));
        }
    }
    futures::future::join_all(programs.into_iter().map(|(_, program)| Program::stop(program))).await;
    Ok(figures)
}

fn start(name: &str, ready: Duration) -> Figure {
    Figure::new(format!("{name}: start to ready"), ready.as_secs_f64(), "s").target(Target::AtMost(TARGET_SECONDS))
}

async fn is_registered(ground: &Ground, queue: Queue) -> bool {
    let registered = sqlx::query_scalar("select exists (select from workers where queue = $1 and state = 'alive')");
    registered.bind(queue.as_str()).fetch_one(&ground.db).await.unwrap_or(false)
}
