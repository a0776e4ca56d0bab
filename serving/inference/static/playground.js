// The playground. What models, callers and the server say is only ever shown as text.
import { examples } from './examples.js'
import { looked } from './heatmap.js'

const $ = id => document.getElementById(id)
const KEY = 'clipft-key', FEW = 12  // classes that are offered as buttons
let models = [], paths = {}, file = null, url = '', asked = 0, again = null

function make(tag, kind = '', ...inside) {
  const made = document.createElement(tag)
  if (kind) made.className = kind
  made.append(...inside)
  return made
}

function button(text, kind, press) {
  const made = make('button', kind, text)
  made.type = 'button'
  made.onclick = press
  return made
}

const model = () => models.find(m => m.domain === $('domain').value)
const tell = (text, wrong = false) => { $('said').textContent = text; $('said').className = wrong ? 'wrong' : '' }
const percent = share => (100 * share).toFixed(share < 0.1 || share > 0.995 ? 1 : 0) + '%'

// The server ----------------------------------------------------------------------------------------------------------

class Refusal extends Error { }

async function call(path, body, headers = {}) {
  const key = sessionStorage.getItem(KEY), json = typeof body === 'string' ? { 'content-type': 'application/json' } : {}
  const answer = await fetch(path, { method: body === undefined ? 'GET' : 'POST', body, headers: { ...json, ...(key && { authorization: `Bearer ${key}` }), ...headers } })
  const content = await answer.json().catch(() => ({}))
  if (answer.ok) return { content, headers: answer.headers }
  if (answer.status === 401 || answer.status === 403) { showKey(true); $('key').focus() }
  const why = content.detail
  throw Object.assign(new Refusal(typeof why === 'string' ? why : why ? why.map(one => one.msg).join('; ') : `The server answered ${answer.status}.`), { status: answer.status, code: content.code })
}

function form(fields) {
  const made = new FormData()
  made.append('domain', $('domain').value)
  for (const [name, value] of fields) made.append(name, value)
  return made
}

/** Do something that may fail. What comes after another image or domain was chosen is not shown. */
async function attempt(work) {
  const turn = ++asked
  again = work
  tell('')
  document.body.setAttribute('aria-busy', 'true')
  try {
    await work(() => turn === asked)
  } catch (error) {
    if (turn === asked) tell(error instanceof Refusal ? error.message : 'The server cannot be reached.', true)
    if (!(error instanceof Refusal)) console.error(error)
  } finally {
    if (turn === asked) document.body.removeAttribute('aria-busy')
  }
}

/** The same with a heatmap, or without where this kind of model has none or the server knows none. */
async function explained(path, fields) {
  if (!$('explain').checked) return call(path, form(fields))
  try {
    return await call(path, form([...fields, ['explain', 'true']]))
  } catch (error) {
    if (!(error instanceof Refusal) || ![409, 413].includes(error.status) || error.code === 'other_version') throw error
    const plain = await call(path, form(fields))
    return { ...plain, unexplained: error.message }
  }
}

// Bars ----------------------------------------------------------------------------------------------------------------

function bars(rows, { format, low = 0, high = 1, press }) {
  return make('ol', 'bars', ...[...rows].sort((a, b) => b[1] - a[1]).map(([name, value, mark], place) => {
    const bar = make('div', 'bar'), row = make('li', [place ? '' : 'first', press ? 'choice' : ''].join(' ').trim())
    bar.style.width = 100 * (high > low ? Math.max(0, (value - low) / (high - low)) : 1) + '%'
    row.append(make('div', 'name', make('span', '', name), make('span', '', (mark || '') + format(value))), make('div', 'track', bar))
    if (press) {
      row.tabIndex = 0
      row.setAttribute('role', 'button')
      row.onclick = () => press(name, row)
      row.onkeydown = event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); press(name, row) } }
    }
    return row
  }))
}

function figure(heatmap) {
  return make('figure', '', looked(url, heatmap), make('figcaption', '', `Colored: what speaks for “${heatmap.text}” rather than for the others.`))
}

// Classes -------------------------------------------------------------------------------------------------------------

/** The versions to ask: the live one, and where two are compared the one that is tried beside it. `why` says what is missing. */
async function versions() {
  if (!$('compare').checked) return [{}]
  const one = { version: model().version }
  let tried = null
  try {
    tried = (await call('v1/shadows/' + encodeURIComponent(model().domain))).content
  } catch (error) {
    if (error.status !== 404) throw error
  }
  if (!tried) return [one, { why: `Only version ${one.version} is loaded. A second one is there while it is tried (PUT /v1/shadows/${model().domain}).` }]
  if (!tried.answers) return [one, { why: `Version ${tried.version} is tried in the shadow of version ${one.version}: it answers nobody.` }]
  return [one, { version: tried.version }]
}

const classify = () => attempt(async wanted => {
  $('panes').replaceChildren()
  if (!file) return tell('Choose an image first.', true)
  const panes = await Promise.all((await versions()).map(async ({ version, why }) => {
    if (why) return make('section', 'pane', make('p', 'empty', why))
    const began = performance.now(), got = await explained('v1/classify', [['image', file], ...(version ? [['version', version]] : [])])
    return pane(got, performance.now() - began)
  }))
  if (wanted()) $('panes').replaceChildren(...panes)
})

function pane({ content, headers, unexplained }, milliseconds) {
  const found = content.predictions[0], made = make('section', 'pane'), aside = make('div')
  const set = found.prediction_set || [], calibrated = content.calibrated
  made.append(make('h2', '', found.label, make('small', 'soft', `version ${headers.get('x-clipft-model-version')}`)))
  if (found.none_of_these) made.append(make('p', 'none', 'None of these: the image is of another kind than those that the model was made for.'))
  const rows = Object.entries(found.probabilities).map(([name, value]) => [name, value, set.length > 1 && set.includes(name) ? '● ' : ''])
  aside.append(bars(rows, { format: percent }))
  const facts = [calibrated === undefined ? '' : calibrated ? 'Calibrated: of answers this sure, so many are right.' : 'Not calibrated.']
  if (set.length && content.coverage) facts.push(`${percent(content.coverage)} of the time the true class is ${set.length > 1 ? 'one of those marked ●' : `“${set[0]}” in such cases`}.`)
  facts.push(`Data ${headers.get('x-clipft-dataset') || 'unknown'}, ${milliseconds.toFixed(0)} ms.`)
  if (unexplained) facts.push(`No heatmap: ${unexplained}`)
  aside.append(make('p', 'facts', facts.filter(Boolean).join(' ')), judge(headers.get('x-clipft-answer-id'), found.label))
  made.append(make('div', 'beside', ...(found.heatmap ? [figure(found.heatmap)] : []), aside))
  return made
}

/** Right and Wrong, which are feedback on one answer. */
function judge(answer, label) {
  const made = make('div', 'judge')
  const send = truth => attempt(async () => {
    const got = await call('v1/feedback', JSON.stringify({ answer_id: answer, label: truth }))
    made.replaceChildren(make('span', 'soft', got.content.counted ? `Thank you: it counts for version ${got.content.version}.` : 'This image was judged before.'))
  })
  const ask = () => {
    const truth = make('div', 'truth'), others = model().classes.filter(name => name !== label), id = 'truth-' + answer
    const named = make('label', '', 'What does it really show?'), input = make('input')
    named.htmlFor = input.id = id
    truth.append(named)
    if (others.length <= FEW) truth.append(...others.map(name => button(name, 'plain', () => send(name))))
    const finish = () => input.value.trim() ? send(input.value.trim()) : input.focus()
    input.placeholder = 'something else'
    input.onkeydown = event => { if (event.key === 'Enter') { event.preventDefault(); finish() } }
    truth.append(input, button('Send', '', finish))
    made.querySelector('.truth')?.remove()
    made.append(truth)
    ;(truth.querySelector('button.plain') || input).focus()
  }
  made.append(button('Right', 'plain right', () => send(label)), button('Wrong', 'plain', ask))
  return made
}

// Own words -----------------------------------------------------------------------------------------------------------

const compare = () => attempt(async wanted => {
  $('similar').replaceChildren()
  const texts = [...new Set($('texts').value.split('\n').map(text => text.trim()).filter(Boolean))]
  if (!file) return tell('Choose an image first.', true)
  if (!texts.length) return tell('Write one text a line first.', true)
  const got = await explained('v1/similarity', [['image', file], ...texts.map(text => ['text', text])])
  if (!wanted()) return
  const values = got.content.similarity[0], maps = got.content.heatmaps?.[0], shown = make('div')
  const press = maps && ((name, row) => {
    for (const other of row.parentElement.children) other.setAttribute('aria-pressed', other === row)
    shown.replaceChildren(figure(maps[texts.indexOf(name)]))
  })
  const list = bars(texts.map((text, i) => [text, values[i]]), { format: value => value.toFixed(3), low: Math.min(0, ...values), high: Math.max(...values), press })
  const notes = [`Similarity (${model().similarity}).`, maps ? 'Press a text to see what speaks for it.' : '', got.unexplained ? `No heatmap: ${got.unexplained}` : '']
  $('similar').replaceChildren(make('div', 'beside', ...(maps ? [shown] : []), make('div', '', list, make('p', 'facts', notes.filter(Boolean).join(' ')))))
  if (maps) press(list.firstChild.querySelector('.name span').textContent, list.firstChild)
})

// Search --------------------------------------------------------------------------------------------------------------

const base64 = async blob => { const bytes = new Uint8Array(await blob.arrayBuffer()); let text = ''; for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000)); return btoa(text) }

const search = asking => attempt(async wanted => {
  $('hits').replaceChildren()
  const body = { domain: $('domain').value, limit: 20, ...(await asking()) }
  const { content } = await call('v1/search', JSON.stringify(body))
  if (!wanted()) return
  const rows = content.hits.map(hit => [[hit.caption || hit.label || hit.id, hit.caption && hit.label, hit.caption || hit.label ? hit.id : ''].filter(Boolean).join(' · '), hit.score])
  const scores = rows.map(row => row[1])
  $('hits').replaceChildren(bars(rows, { format: value => value.toFixed(3), low: Math.min(0, ...scores), high: Math.max(...scores) }), make('p', 'facts', `${content.hits.length} of ${content.rows} images of ${content.source}, by version ${content.version}.`))
})

// Tabs, images, keys --------------------------------------------------------------------------------------------------

const tabs = () => [...$('tabs').children].filter(tab => !tab.hidden)
const tab = () => tabs().find(each => each.getAttribute('aria-selected') === 'true')
const ask = () => file && ({ 'tab-classes': model()?.classes.length > 1 ? classify : () => { }, 'tab-words': compare, 'tab-search': () => { } })[tab().id]()

function open(chosen) {
  for (const each of $('tabs').children) {
    const selected = each === chosen
    each.setAttribute('aria-selected', selected)
    each.tabIndex = selected ? 0 : -1
    $(each.getAttribute('aria-controls')).hidden = !selected
  }
  $('compare-row').hidden = chosen.id !== 'tab-classes' || !can('post', 'v1/classify', 'version')
}

/** Whether a route of this server takes a field. */
function can(method, path, field) {
  const body = paths['/' + path]?.[method]?.requestBody?.content['application/json']?.schema
  return Boolean(body?.properties?.[field])
}

function forget() {
  asked++
  $('panes').replaceChildren()
  $('similar').replaceChildren()
  $('hits').replaceChildren()
  document.body.removeAttribute('aria-busy')
  tell('')
}

function chooseDomain() {
  forget()
  const classes = model()?.classes || []
  $('texts').value = classes.map(name => 'an image of ' + name).join('\n')
  $('no-classes').hidden = classes.length > 1
  if (classes.length < 2) open($('tab-words'))
  $('examples').replaceChildren(...examples($('domain').value).map(([about, draw]) => {
    const drawn = draw(), pick = button('', '', () => drawn.toBlob(blob => choose(new File([blob], about + '.png', { type: 'image/png' }))))
    pick.append(drawn)
    pick.setAttribute('aria-label', about)
    pick.title = about
    return pick
  }))
  ask()
}

function choose(chosen) {
  if (!chosen) return
  forget()
  file = chosen
  if (url) URL.revokeObjectURL(url)
  url = URL.createObjectURL(file)
  $('shown').src = url
  $('shown').hidden = $('name').hidden = false
  $('invitation').hidden = true
  $('name').textContent = file.name
  ask()
}

function showKey(is) {
  $('key-form').hidden = !is
  $('key-open').setAttribute('aria-expanded', is)
}

$('domain').onchange = chooseDomain
$('image').onchange = event => { choose(event.target.files[0]); event.target.value = '' }
$('shown').onerror = () => { if (file) { $('shown').hidden = true; $('invitation').hidden = false; tell('Your browser cannot show this file; the model may read it all the same.') } }
$('explain').onchange = ask
$('compare').onchange = ask
$('panel-words').onsubmit = event => { event.preventDefault(); compare() }
$('panel-search').onsubmit = event => { event.preventDefault(); const text = $('query').value.trim(); if (text) search(async () => ({ text })); else tell('Write what to look for first.', true) }
$('search-image').onclick = () => file ? search(async () => ({ image: { base64: await base64(file) } })) : tell('Choose an image first.', true)
$('key-open').onclick = () => { showKey($('key-form').hidden); if (!$('key-form').hidden) $('key').focus() }
$('key-form').onsubmit = event => {
  event.preventDefault()
  sessionStorage.setItem(KEY, $('key').value.trim())
  $('key').value = ''
  showKey(false)
  tell('The key is used from now on.')
  if (again) attempt(again)
}
$('key-forget').onclick = () => { sessionStorage.removeItem(KEY); $('key').value = ''; showKey(false); tell('The key is forgotten.') }
$('tabs').onclick = event => { if (event.target.getAttribute('role') === 'tab') { open(event.target); forget(); ask() } }
$('tabs').onkeydown = event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], all = tabs()
  if (step) { const next = all.at((all.indexOf(tab()) + step) % all.length); next.focus(); next.click() }
}
const take = files => choose([...files].find(each => each.type.startsWith('image/')))
document.addEventListener('paste', event => take(event.clipboardData.files))
document.addEventListener('dragover', event => { event.preventDefault(); document.body.classList.add('over') })
document.addEventListener('dragleave', () => document.body.classList.remove('over'))
document.addEventListener('drop', event => { event.preventDefault(); document.body.classList.remove('over'); take(event.dataTransfer.files) })

/** Whoever chose an image before this was done sees it answered then. */
async function begin() {
  const [{ content }, api] = await Promise.all([call('v1/models'), call('openapi.json')])
  paths = api.content.paths
  models = Array.isArray(content) ? content : content.data
  $('domain').replaceChildren(...models.map(m => new Option(`${m.domain}, version ${m.version}`, m.domain)))
  $('tab-search').hidden = !paths['/v1/search']
  open($('tab-classes'))
  if (models.length) chooseDomain()
  else tell('No model is live yet: fine-tune one first (clipft_finetune in Airflow, or clipft run).', true)
}
open($('tab-classes'))
attempt(begin)
