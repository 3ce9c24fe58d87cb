mod media_clips;
mod media_render;
