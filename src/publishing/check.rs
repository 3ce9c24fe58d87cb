//! Whether content fits its platforms: every problem of every platform at once, before anything is queued.

use super::{MediaTrouble, Publisher};
use crate::{
    ids::TenantId,
    platforms::{Content, ContentProblem, Platform, content::ContentMedia},
    posts::Post,
    text::{self, Measure},
};

/// What one platform says about a post.
#[derive(Debug, Clone)]
pub struct Report {
    pub platform: Platform,
    pub length: Measure,
    pub problems: Vec<ContentProblem>,
}

/// `optimized`: the text is going to be rewritten to fit, so what is wrong with it does not count.
pub async fn check(
    publisher: &Publisher,
    tenant: TenantId,
    post: &Post,
    platforms: &[Platform],
    optimized: bool,
) -> Result<Vec<Report>, MediaTrouble> {
    let mut reports = Vec::new();
    for platform in platforms {
        reports.push(on(publisher, tenant, post, *platform, optimized).await?);
    }
    Ok(reports)
}

async fn on(
    publisher: &Publisher,
    tenant: TenantId,
    post: &Post,
    platform: Platform,
    optimized: bool,
) -> Result<Report, MediaTrouble> {
    let text = post.text_for(platform);
    let length = text::measure(platform, text);
    let Some(connector) = publisher.accounts.connectors().get(platform) else {
        let problem = ContentProblem {
            code: "platform_unavailable",
            field: "platforms".to_owned(),
            message: format!("this version cannot publish on {}", platform.title()),
            remedy: format!("Choose one of {}", names(publisher)),
        };
        return Ok(Report { platform, length, problems: vec![problem] });
    };
    let (mut media, mut problems) = (Vec::new(), Vec::new());
    for (index, file) in post.media.iter().enumerate() {
        let field = format!("media[{index}]");
        let facts = match publisher.media.facts(tenant, file.media).await {
            Ok(facts) => facts,
            Err(MediaTrouble::Gone) => {
                problems.push(problem("media_unknown", field, "is no upload of yours", "Upload the file first"));
                continue;
            }
            Err(MediaTrouble::Unusable(why)) => {
                problems.push(problem("media_unusable", field, &why, "Use another file"));
                continue;
            }
            Err(trouble) => return Err(trouble),
        };
        let preset = connector.preset_for(facts.kind);
        if let Some(preset) = preset
            && let Some(why) = publisher.media.refusal(tenant, file.media, preset).await?
        {
            problems.push(problem("media_refused", field, &why, "Use another file"));
        }
        media.push(ContentMedia { facts, will_be_made: preset.is_some(), alt_text: file.alt_text.clone() });
    }
    let found = connector.validate(&Content { text, media: &media });
    problems.extend(found.into_iter().filter(|problem| !(optimized && problem.field == "text" && !text.is_empty())));
    Ok(Report { platform, length, problems })
}

fn names(publisher: &Publisher) -> String {
    publisher.accounts.connectors().platforms().map(Platform::as_str).collect::<Vec<_>>().join(", ")
}

fn problem(code: &'static str, field: String, message: &str, remedy: &str) -> ContentProblem {
    ContentProblem { code, field, message: message.to_owned(), remedy: remedy.to_owned() }
}
