setInterval(async () => {
  const place = document.getElementById("latest");
  const playing = [...place.querySelectorAll("video")].some((video) => video.currentTime > 0);
  if (document.hidden || playing) return;
  const answer = await fetch("/_sandbox/latest").catch(() => null);
  const version = answer && answer.headers.get("x-version");
  if (!version || version === place.dataset.version) return;
  place.innerHTML = await answer.text();
  place.dataset.version = version;
}, 2000);
