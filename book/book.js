// Search, the theme and the contents of a phone. The index, SECTIONS, is in search.js: a page that
// is opened from disk may load a script, but may not fetch a file.

const root = document.documentElement
const results = 12

// --- Theme: the reader's choice is kept ---
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches
  root.dataset.theme = dark ? "light" : "dark"
  try { localStorage.theme = root.dataset.theme } catch {}
})

// --- Contents on a phone ---
const menu = document.getElementById("menu")
function openMenu(open) {
  root.classList.toggle("menu-open", open)
  menu.setAttribute("aria-expanded", open)
}
menu.addEventListener("click", () => openMenu(!root.classList.contains("menu-open")))
document.getElementById("contents").addEventListener("click", (event) => {
  if (event.target.closest("a")) openMenu(false)
})

// --- Search ---
const form = document.getElementById("search")
const input = form.querySelector("input")
const found = document.getElementById("found")

function fold(text) {
  return text.toLowerCase().normalize("NFD").replace(/\p{M}/gu, "")
}

// Every word has to be in a section; one in its title counts more.
function search(words) {
  const hits = []
  for (const [address, page, title, text] of SECTIONS) {
    const heads = fold(`${page} ${title}`), body = fold(text)
    let score = 0
    for (const word of words) {
      const inTitle = heads.includes(word), count = body.split(word).length - 1
      if (!inTitle && !count) { score = 0; break }
      score += (inTitle ? 10 : 0) + Math.min(count, 5)
    }
    if (score) hits.push({ address, page, title, text, score })
  }
  return hits.sort((a, b) => b.score - a.score).slice(0, results)
}

// The text around the first word found, the words marked.
function excerpt(text, words) {
  const places = words.map((word) => fold(text).indexOf(word)).filter((place) => place >= 0)
  const near = Math.max(0, Math.min(...places, text.length) - 50)
  const start = near && text.indexOf(" ", near)
  const span = document.createElement("span")
  const part = (start ? "…" : "") + text.slice(start, start + 150)
  const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"))
  part.split(new RegExp(`(${escaped.join("|")})`, "gi")).forEach((piece, i) => {
    if (i % 2) span.append(Object.assign(document.createElement("mark"), { textContent: piece }))
    else span.append(piece)
  })
  return span
}

function show() {
  const words = fold(input.value).split(/\s+/).filter(Boolean)
  found.replaceChildren()
  found.hidden = !words.length
  const hits = words.length ? search(words) : []
  for (const { address, page, title, text } of hits) {
    const link = document.createElement("a")
    link.href = address
    link.append(Object.assign(document.createElement("b"), { textContent: title || page }))
    if (title !== page) link.append(" · ", page)
    link.append(excerpt(text, words))
    const item = document.createElement("li")
    item.append(link)
    found.append(item)
  }
  if (words.length && !hits.length) {
    const item = document.createElement("li")
    item.className = "none"
    item.textContent = `Nothing has “${input.value.trim()}”.`
    found.append(item)
  }
}

function close() {
  found.hidden = true
}

input.addEventListener("input", show)
input.addEventListener("focus", show)
form.addEventListener("submit", (event) => {
  event.preventDefault()
  found.querySelector("a")?.click()
})
found.addEventListener("click", (event) => {
  if (event.target.closest("a")) close()
})
document.addEventListener("click", (event) => {
  if (!form.contains(event.target)) close()
})
document.addEventListener("keydown", (event) => {
  const links = [...found.querySelectorAll("a")]
  if (event.key === "Escape") {
    close()
    openMenu(false)
  } else if (event.key === "/" && document.activeElement !== input) {
    event.preventDefault()
    input.focus()
  } else if (!found.hidden && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    event.preventDefault()
    const place = links.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1)
    ;(links[place] ?? input).focus()
  }
})
