'use strict'
const $ = id => document.getElementById(id)
const make = (tag, text = '', ...inside) => { const e = document.createElement(tag); e.textContent = text; e.append(...inside); return e }

function section(path, method, about, definitions) {
  const box = make('details'), locked = about.security && about.security.every(way => Object.keys(way).length) ? ' *' : ''
  box.append(make('summary', '', make('b', `${method.toUpperCase()} ${path}`), `${locked}  ${(about.description || about.summary || '').split('\n')[0]}`))
  const places = (about.parameters || []).map(p => [p, make('input')])
  const fields = make('table')
  for (const [p, input] of places) { input.setAttribute('aria-label', p.name); fields.append(make('tr', '', make('td', `${p.name} (${p.in})`), make('td', p.description || ''), make('td', '', input))) }
  const content = (about.requestBody || { content: {} }).content, json = content['application/json']
  const schema = json && (json.schema.$ref ? definitions[json.schema.$ref.split('/').pop()] : json.schema)
  for (const [name, f] of Object.entries((schema || {}).properties || {})) fields.append(make('tr', '', make('td', name + ((schema.required || []).includes(name) ? ' (required)' : '')), make('td', f.description || f.type || '')))
  box.append(fields)
  const body = make('textarea'), out = make('pre'), button = make('button', 'Send')
  body.rows = 4
  body.setAttribute('aria-label', 'body')
  body.value = json ? JSON.stringify(json.example || schema.example || {}, null, 1) : ''
  if (json) box.append(body)
  if (content['multipart/form-data']) box.append(make('p', `Or as a form: curl ${location.origin}${path} -F image=@image.jpg`))
  out.hidden = true
  button.onclick = async () => {
    let url = path.slice(1)
    const query = new URLSearchParams()
    for (const [p, input] of places) if (p.in === 'path') url = url.replace(`{${p.name}}`, encodeURIComponent(input.value)); else if (p.in === 'query' && input.value) query.set(p.name, input.value)
    const headers = { ...(json && { 'content-type': 'application/json' }), ...($('token').value && { authorization: 'Bearer ' + $('token').value }) }
    out.hidden = false
    try {
      const answer = await fetch(url + (query.size ? '?' + query : ''), { method: method.toUpperCase(), headers, ...(json && { body: body.value }) }), text = await answer.text()
      let shown = text
      try { shown = JSON.stringify(JSON.parse(text), null, 1) } catch { }
      out.textContent = `${answer.status}\n${[...answer.headers].filter(([k]) => k.startsWith('x-')).map(([k, v]) => `${k}: ${v}\n`).join('')}\n${shown.slice(0, 20000)}`
    } catch (error) { out.textContent = String(error) }
  }
  box.append(button, out)
  return box
}

fetch('openapi.json').then(answer => answer.json()).then(api => {
  $('summary').textContent = api.info.summary || ''
  const definitions = (api.components || {}).schemas || {}
  for (const [path, methods] of Object.entries(api.paths)) for (const [method, about] of Object.entries(methods)) $('routes').append(section(path, method, about, definitions))
}).catch(error => { $('summary').textContent = `The description cannot be read: ${error}.` })
