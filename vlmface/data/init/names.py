"""Names that columns have for what they hold, in several languages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

_NAMES = {
    "image": """image img images imagepath imagefile imagename imgpath imgname file filename files
        filepath path picture pictures picturepath pic photo photopath foto fotos bild bilddatei
        bilder datei dateiname pfad subdirectoryfilepath pth input facepath crop fichier chemin
        archivo imagen ruta arquivo imagem caminho immagine percorso bestand afbeelding plik zdjęcie
        файл изображение путь 图像 图片 文件 文件名 路径 画像 ファイル 이미지 파일""",
    "video": """video videopath videofile videoname clip clippath film vídeo 视频 動画 비디오""",
    "split": """split usage set subset partition phase fold datasplit dataset teilmenge aufteilung
        ensemble conjunto partición partição insieme 划分 分割""",
    "subject": """subject subjectid subjectname subj subid sub participant participantid pid person
        personid identity identityid actor actorid speaker user userid uid patient patientid proband
        probandid versuchsperson versuchspersonid vp vpn vpcode teilnehmer teilnehmerid sujet
        participante sujeto persona soggetto partecipante deelnemer osoba uczestnik участник
        испытуемый человек 被试 受试者 人物 人 被験者 参加者 피험자 참가자""",
    "label": """label labels emotion emotions expression class classname category target state
        affect mood engagement sentiment annotation emotionlabel finalemotion gefühl emotionen
        zustand klasse etikett stimmung ausdruck kategorie émotion étiquette classe état humeur
        emoción emociones etiqueta estado clase emoção rótulo emozione etichetta stato emotie
        emocja etykieta эмоция метка класс состояние 情绪 情感 表情 标签 类别 状态 感情 ラベル
        감정 라벨""",
    "valence": "valence valenz val pleasure valencia valência valenza валентность 效价",
    "arousal": "arousal aktivierung erregung activation aro éveil activación attivazione 唤醒度",
    "age": "age alter years jahre âge edad idade età leeftijd возраст 年龄 年齢 나이",
    "age_group": "agegroup agerange altersgruppe agebin agecategory",
    "gender": "gender sex geschlecht genre sexe género sexo gênero genere sesso geslacht пол 性别",
    "race": "race ethnicity ancestry ethnie herkunft etnia raza raça razza 种族",
    "rationale": """rationale caption description text explanation reason reasoning comment
        beschreibung begründung texte légende explication texto descripción explicación testo
        descrizione 描述 说明""",
}


_RATERS = """rater coder annotator judge labeler labeller observer evaluator assessor beurteiler
    bewerter rateur annotateur codeur évaluateur juge codificador anotador evaluador juez avaliador
    valutatore annotatore codificatore beoordelaar sędzia эксперт разметчик кодировщик 标注者 评分者
    评价者 評価者 評定者 평가자"""
_RATINGS = """rating ratings rated score scores vas likert engagement attention attentiveness
    interest boredom confusion frustration concentration intensity pain stress anxiety fatigue
    sleepiness drowsiness comfort discomfort trust trustworthiness attractiveness likeability
    likability warmth competence dominance enjoyment amusement satisfaction excitement involvement
    bewertung einschätzung punkte punktzahl schmerz intensität aufmerksamkeit müdigkeit beteiligung
    langeweile interesse vertrauen sympathie stärke note évaluation douleur intensité puntuación
    calificación dolor intensidad atención compromiso punteggio valutazione dolore intensità
    attenzione pontuação avaliação dor intensidade beoordeling pijn aandacht ocena ból оценка боль
    интенсивность 评分 打分 得分 疼痛 評価 評点 痛み 평점 점수 통증"""
_MEASURED = """id index idx nr no num number row frame frames time timestamp ms sec seconds duration
    trial block order width height x y w h left top right bottom size confidence brightness
    luminance contrast blur sharpness quality date year month day rt latency session visit group
    condition weight bmi n count sd std stdev se sem var variance pitch yaw roll pose seed version
    fold code class category"""
_OF_RATERS = ("", "s", "id", "name", "nr", "no", "number", "code")  # as in rater_id


def plain(name: str) -> str:
    """A name without letter case, accents, and anything but letters and digits."""
    text = unicodedata.normalize("NFKD", name).casefold()
    return "".join(c for c in text if c.isalnum())


_ROLE_OF = {plain(name): role for role, names in _NAMES.items() for name in names.split()}
_RATER_NAMES = {plain(name) + ending for name in _RATERS.split() for ending in _OF_RATERS}
_PLACE = {plain(name): i for names in _NAMES.values() for i, name in enumerate(names.split())}


RATINGS = frozenset(map(plain, _RATINGS.split()))
"""Words in names of columns that hold ratings."""
MEASURED = frozenset(map(plain, _MEASURED.split()))
"""Words in names of columns of numbers that are not ratings."""
_PART = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


def has_part(name: str, words: Collection[str]) -> bool:
    """Whether a name, or a word in it (Pain_VAS, painScore, "Pain (VAS)"), is one of words."""
    return any(plain(part) in words for part in (name, *_PART.split(name)))


def role_of(name: str) -> str | None:
    """What a column of that name holds, of `column_roles.COLUMN_ROLES`; None if it is not known."""
    return _ROLE_OF.get(plain(name))


def is_rater(name: str) -> bool:
    """Whether a column of that name holds who rated, or what somebody who rates has answered."""
    return plain(name) in _RATER_NAMES


def place_of(name: str) -> int:
    """A number that is lower for more common names of a role."""
    return _PLACE.get(plain(name), len(_PLACE))
